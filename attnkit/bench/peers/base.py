"""What a peer is: an implementation that prepares a call and then runs it again and again.

Planning, scheduling metadata and repacking happen in `prepare`, outside the timing, as a server does them once a step for all
layers. What `prepare` returns only enqueues work on the current stream, so that it can be captured in a graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar, TypeAlias

from torch import Tensor

from attnkit.spec import Call

Run: TypeAlias = Callable[[], tuple[Tensor, str]]
"""() -> (output shaped as the backend's, name of the kernels or the library function that ran)."""


class Unsupported(Exception):
    """This peer cannot compute that call; the message is the reason that the row shows."""


class Peer(ABC):
    """One implementation.

    Args (of the class):
        name: what the row says.
        package: distribution whose version is reported; "" for attnkit itself.
        modules: what must import; the first that does not is why the peer is absent.
        groups: the groups of work.py that it takes.
        comparable: False where it works on another layout than the workload's, so that it does not count for the ratio.
    """

    name: ClassVar[str]
    package: ClassVar[str] = ""
    modules: ClassVar[tuple[str, ...]] = ()
    groups: ClassVar[tuple[str, ...]]
    comparable: ClassVar[bool] = True

    def absent(self) -> str:
        """Why it cannot run in this process at all, or ""."""
        for module in self.modules:
            try:
                import_module(module)
            except Exception as error:  # a vendor's import can fail in any way; that is a finding, not a crash
                return f"{module}: {type(error).__name__}: {error}"
        return ""

    def version(self) -> str:
        """Version of `package`; "" where it has none."""
        try:
            return version(self.package) if self.package else ""
        except PackageNotFoundError:
            return ""

    @abstractmethod
    def prepare(self, call: Call) -> Run:
        """Everything that a server does once a step, and the run that a graph captures.

        Raises:
            Unsupported: it cannot compute `call`.
        """
