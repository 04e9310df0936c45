"""Modules to import in place of a package: each function there has the package's signature and binds what it is called with.

Nothing of the package runs. A name that the package lacks cannot be imported, a parameter that it lacks cannot be passed.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeAlias

from tools.contracts.package import Definition, Function, Package, decorators, returned, signature

Arguments: TypeAlias = Mapping[str, Any]
Returns: TypeAlias = Mapping[str, Callable[[Arguments], Any]]


class ContractError(Exception):
    """A call does not fit the package."""


@dataclass(frozen=True)
class Bound:
    """One call, with every argument by the name of the parameter it arrived in.

    Args:
        function: "flash_attn_varlen_func", "BatchDecodeWithPagedKVCacheWrapper.plan".
        arguments: what was passed; defaults are left out.
    """

    function: str
    arguments: Arguments


class Recorder:
    """Binds calls to the signatures of a package and keeps them.

    Args:
        package: where the signatures come from.
        returns: by function, what a call gives back, made from its arguments. Where nothing is given here: an instance of
            the class that the return annotation names, else None.
    """

    def __init__(self, package: Package, returns: Returns) -> None:
        self.package = package
        self.calls: list[Bound] = []
        self._returns = returns

    def stand_in(self, definition: Definition) -> Any:
        """What to import for `definition`."""
        if isinstance(definition.node, ast.ClassDef):
            return _Class(self, definition)
        return self.function(definition, definition.name, definition.node, bound=False)

    def function(self, home: Definition, name: str, node: Function, *, bound: bool) -> Callable[..., Any]:
        """A callable with the signature of `node`; `home` is where names in its annotations are looked up."""
        expected = signature(node, bound=bound)

        def called(*args: Any, **kwargs: Any) -> Any:
            try:
                arguments = expected.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise ContractError(f"{name}{_names(expected)}: {error}") from None
            flat = self._flatten(home, name, node, expected, arguments)
            for parameter in expected.parameters.values():
                if parameter.name in flat:
                    _check_kind(name, parameter, flat[parameter.name])
            self.calls.append(Bound(name, flat))
            if name in self._returns:
                return self._returns[name](flat)
            return self._instance(home.module, returned(node))

        return called

    def method(self, owner: Definition, name: str) -> Definition:
        """A method of a class of the package.

        Raises:
            ContractError: there is none.
        """
        found = self.package.method(owner, name)
        if found is None:
            raise ContractError(f"{owner.name} of {self.package.name} {self.package.version} has no method {name}")
        return found

    def _instance(self, module: str, annotation: str | None) -> Any:
        definition = self.package.find(module, annotation) if annotation and annotation.isidentifier() else None
        is_class = isinstance(definition, Definition) and isinstance(definition.node, ast.ClassDef)
        return _Instance(self, definition) if is_class and isinstance(definition, Definition) else None

    def _flatten(
        self, home: Definition, name: str, node: Function, expected: inspect.Signature, arguments: Arguments
    ) -> dict[str, Any]:
        """The arguments with those of **kwargs among them, after a look at where the function hands its **kwargs on."""
        flat = dict(arguments)
        for parameter in expected.parameters.values():
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD or parameter.name not in flat:
                continue
            extra = flat.pop(parameter.name)
            for target in _receivers(node, parameter.name):
                found = self.package.method(home, target) or self.package.find(home.module, target)
                if not isinstance(found, Definition) or isinstance(found.node, ast.ClassDef):
                    continue
                takes = signature(found.node, bound=False).parameters
                if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values()):
                    continue
                unknown = sorted(set(extra) - set(takes))
                if unknown:
                    raise ContractError(f"{name} hands {', '.join(unknown)} on to {target}, which has no such parameter")
            flat |= extra
        return flat


class _Class:
    """A class of the package: constructor, class methods and static methods."""

    def __init__(self, recorder: Recorder, definition: Definition) -> None:
        self._recorder = recorder
        self._definition = definition

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        init = self._recorder.method(self._definition, "__init__")
        assert not isinstance(init.node, ast.ClassDef)
        name = f"{self._definition.name}.__init__"
        self._recorder.function(self._definition, name, init.node, bound=True)(*args, **kwargs)
        return _Instance(self._recorder, self._definition)

    def __getattr__(self, name: str) -> Any:
        return _attribute(self._recorder, self._definition, name, on_class=True)


class _Instance:
    """An instance of a class of the package: its methods."""

    def __init__(self, recorder: Recorder, definition: Definition) -> None:
        self._recorder = recorder
        self._definition = definition

    def __getattr__(self, name: str) -> Any:
        return _attribute(self._recorder, self._definition, name, on_class=False)


def _attribute(recorder: Recorder, owner: Definition, name: str, *, on_class: bool) -> Any:
    found = recorder.method(owner, name)
    assert not isinstance(found.node, ast.ClassDef)
    marks = decorators(found.node)
    if on_class and not marks & {"classmethod", "staticmethod"}:
        raise ContractError(f"{owner.name}.{name} is neither a class method nor a static method")
    home = Definition(found.module, owner.node)
    return recorder.function(home, f"{owner.name}.{name}", found.node, bound="staticmethod" not in marks)


@contextmanager
def standing_in(recorder: Recorder) -> Iterator[None]:
    """Inside, imports of the package's roots give stand-ins; real modules of these names come back afterwards."""
    roots = recorder.package.roots

    def ours(name: str) -> bool:
        return name.split(".", 1)[0] in roots

    finder = _Finder(recorder)
    kept = {name: module for name, module in sys.modules.items() if ours(name)}
    for name in kept:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if ours(name)]:
            del sys.modules[name]
        sys.modules.update(kept)


class _Finder(MetaPathFinder, Loader):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package = self._recorder.package
        if fullname.split(".", 1)[0] not in package.roots or not package.has_module(fullname):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name, self._recorder)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing runs: attributes are looked up in the source."""


class _Module(ModuleType):
    def __init__(self, name: str, recorder: Recorder) -> None:
        super().__init__(name)
        self.__dict__["_recorder"] = recorder

    def __getattr__(self, name: str) -> Any:
        recorder: Recorder = self.__dict__["_recorder"]
        found = None if name.startswith("__") else recorder.package.find(self.__name__, name)
        if found is None:
            raise AttributeError(f"{self.__name__} of {recorder.package.name} {recorder.package.version} has no {name}")
        return importlib.import_module(found) if isinstance(found, str) else recorder.stand_in(found)


def _receivers(node: Function, keywords: str) -> set[str]:
    """Names of the functions and methods to which `node` hands **keywords on."""
    found = set()
    for call in ast.walk(node):
        if not isinstance(call, ast.Call):
            continue
        if any(k.arg is None and isinstance(k.value, ast.Name) and k.value.id == keywords for k in call.keywords):
            found.add(ast.unparse(call.func).rsplit(".", 1)[-1])
    return found


def _names(expected: inspect.Signature) -> str:
    return f"({', '.join(expected.parameters)})"


def _check_kind(function: str, parameter: inspect.Parameter, value: Any) -> None:
    """Compare a value with the annotations that say something: Tensor, int, float, bool, and these or None."""
    if not isinstance(parameter.annotation, str):
        return
    text = parameter.annotation.replace("torch.", "").replace(" ", "")
    optional = text.startswith("Optional[") or "|None" in text
    text = text.removeprefix("Optional[").removesuffix("]" if optional and "|" not in text else "").replace("|None", "")
    if text not in _KINDS or (optional and value is None):
        return
    if not _KINDS[text](value):
        raise ContractError(f"{function}: {parameter.name} is a {parameter.annotation} there and gets a {type(value).__name__}")


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "Tensor": _is_tensor,
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "bool": lambda v: isinstance(v, bool),
}
