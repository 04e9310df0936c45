"""sm_75 code on a later card: what Triton is told about the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attnkit.errors import UnsupportedError
from attnkit.hardware.device import Device
from attnkit.kernels.turing import ptx
from attnkit.kernels.turing.hook import CAPABILITY, STATE, enable

TARGET_DEVICE = Device(
    vendor="nvidia", kind="gpu", name="sm_75 code on a newer card", arch="sm_75", features=("emulated",), source="emulate"
)
"""What `emulate()` claims to be."""


class _EmulatedDevice(int):
    """A device index that Triton's caches tell from the real one, so that code of all kinds can live side by side."""

    stock = False

    def __hash__(self) -> int:
        return hash(("sm_75", int(self), self.stock))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _EmulatedDevice) and (int(self), self.stock) == (int(other), other.stock)


class _EmulatedUtils:
    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_device_properties(self, device: int) -> dict[str, Any]:
        return {**self._real.get_device_properties(int(device)), "max_shared_mem": ptx.SHARED_MEMORY_LIMIT}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int, *rest: Any) -> Any:
        return self._real.load_binary(name, kernel, shared, int(device), *rest)


class _EmulatedDriver:
    """The active driver, saying that its device is an sm_75 one."""

    def __init__(self, real: Any, stock: bool) -> None:
        self._real = real
        self.stock = stock
        self.utils = _EmulatedUtils(real.utils)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self) -> int:
        device = _EmulatedDevice(self._real.get_current_device())
        device.stock = self.stock
        return device

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return divmod(CAPABILITY, 10)

    def get_current_stream(self, device: int | None = None) -> Any:
        return self._real.get_current_stream(None if device is None else int(device))


@contextmanager
def emulate(*, stock: bool = False) -> Iterator[Device]:
    """For tests: inside, every Triton kernel is compiled for sm_75 and its sm_75 PTX runs on this newer card.

    ptxas for sm_75 still compiles (and so checks) each kernel; what is loaded is the PTX, which the card's driver translates.
    The arithmetic is that of the Turing instructions; the speed is not that of a Turing card.

    Args:
        stock: compile with Triton's own code generation for sm_75 (no tensor cores), for comparison.

    Yields:
        The sm_75 device to hand to selection and self-test.
    """
    from triton.runtime.driver import driver

    enable()
    real, before = driver.active, dict(STATE)
    if not isinstance(real, _EmulatedDriver):
        driver.set_active(_EmulatedDriver(real, stock))
    elif real.stock != stock:
        raise UnsupportedError("emulate() is already active with the other code generation")
    STATE.update(emulating=True, stock=stock)
    try:
        yield TARGET_DEVICE
    finally:
        STATE.update(before)
        driver.set_active(real)
