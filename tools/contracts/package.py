"""A package as it was published, read without importing it: its modules, definitions and signatures."""

from __future__ import annotations

import ast
import inspect
import re
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from packaging.utils import parse_sdist_filename, parse_wheel_filename

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

_BLOCKS = ("body", "orelse", "finalbody")


@dataclass(frozen=True)
class Definition:
    """A function or class, and the module it is defined in."""

    module: str
    node: Function | ast.ClassDef

    @property
    def name(self) -> str:
        """As written in the source."""
        return self.node.name


class Package:
    """The Python modules of one wheel or source distribution.

    Args:
        path: a .whl or .tar.gz file as PyPI serves it.
        roots: top-level import names to look at.
    """

    def __init__(self, path: Path, roots: tuple[str, ...]) -> None:
        self.path = path
        self.roots = roots
        if path.suffix == ".whl":
            name, version, *_ = parse_wheel_filename(path.name)
        else:
            name, version = parse_sdist_filename(path.name)
        self.name, self.version = str(name), str(version)
        self._trees: dict[str, ast.Module] = {}

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Contents of every .py file below the roots, and of other files their name only; by path inside the package."""
        if self.path.suffix == ".whl":
            with zipfile.ZipFile(self.path) as archive:
                wanted = [n for n in archive.namelist() if n.split("/", 1)[0] in self.roots]
                return {n: archive.read(n) if n.endswith(".py") else b"" for n in wanted}
        found: dict[str, bytes] = {}
        with tarfile.open(self.path) as archive:
            for member in archive:
                name = member.name.partition("/")[2]  # below the folder NAME-VERSION
                if member.isfile() and name.split("/", 1)[0] in self.roots:
                    handle = archive.extractfile(member) if name.endswith(".py") else None
                    found[name] = handle.read() if handle else b""
        return found

    @cached_property
    def _modules(self) -> dict[str, str]:
        """File by dotted module name."""
        table: dict[str, str] = {}
        for file in self.files:
            path = PurePosixPath(file)
            if path.suffix == ".py":
                parts = path.parent.parts if path.name == "__init__.py" else (*path.parent.parts, path.stem)
                table[".".join(parts)] = file
        return table

    def has_module(self, name: str) -> bool:
        """Whether `name` can be imported: a module, or a folder of modules without an __init__."""
        return name in self._modules or any(module.startswith(name + ".") for module in self._modules)

    def extension(self, name: str) -> str | None:
        """The file of the compiled module `name`, None where the package has none."""
        stem = name.replace(".", "/") + "."
        return next((file for file in self.files if file.startswith(stem) and file.endswith(".so")), None)

    def operator(self, extension: str, name: str) -> str | None:
        """The schema with which a compiled module of a wheel registers the torch operator `name`, white space made single.

        It stands in the file as text: "varlen_fwd(Tensor q, Tensor k, ...) -> Tensor[]". None where it does not.
        """
        file = self.extension(extension)
        if file is None:
            return None
        with zipfile.ZipFile(self.path) as archive:
            found = re.search(re.escape(name).encode() + rb"\([A-Z\w][^\0]*->[^\0]*", archive.read(file))
        return " ".join(found.group().decode(errors="replace").split()) if found else None

    def source(self, module: str) -> str:
        """The text of a module, "" where there is none."""
        return self.files[self._modules[module]].decode(errors="replace") if module in self._modules else ""

    def find(self, module: str, name: str) -> Definition | str | None:
        """What `from module import name` gives: a definition, followed through re-exports, or the name of a submodule.

        None where there is nothing of that name, or only something that is neither function, class nor module.
        """
        return self._find(module, name, set())

    def _find(self, module: str, name: str, seen: set[str]) -> Definition | str | None:
        if module in seen:
            return None
        seen.add(module)
        stars: list[str] = []
        for statement in _statements(self._tree(module).body):
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if statement.name == name and not _is_overload(statement):
                    return Definition(module, statement)
            elif isinstance(statement, ast.ImportFrom):
                origin = self._absolute(module, statement)
                for alias in statement.names:
                    if alias.name == "*":
                        stars.append(origin)
                    elif (alias.asname or alias.name) == name:
                        found = self._find(origin, alias.name, seen - {origin})
                        if found is not None:
                            return found
        if f"{module}.{name}" in self._modules:
            return f"{module}.{name}"
        return next((f for star in stars if (f := self._find(star, name, seen)) is not None), None)

    def method(self, owner: Definition, name: str) -> Definition | None:
        """A method of the class `owner`, looked up in its bases too, and through `alias = method`."""
        if not isinstance(owner.node, ast.ClassDef):
            return None
        for statement in owner.node.body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                if statement.name == name and not _is_overload(statement):
                    return Definition(owner.module, statement)
            elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
                targets = [t.id for t in statement.targets if isinstance(t, ast.Name)]
                if name in targets and statement.value.id != name:
                    return self.method(owner, statement.value.id)
        for base in owner.node.bases:
            if isinstance(base, ast.Name):
                parent = self.find(owner.module, base.id)
                if isinstance(parent, Definition) and (found := self.method(parent, name)):
                    return found
        return None

    def _tree(self, module: str) -> ast.Module:
        if module not in self._trees:
            self._trees[module] = ast.parse(self.source(module))
        return self._trees[module]

    def _absolute(self, module: str, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        parts = module.split(".")
        is_package = self._modules.get(module, "").endswith("__init__.py")
        keep = len(parts) - statement.level + (1 if is_package else 0)
        return ".".join([*parts[:keep], *([statement.module] if statement.module else [])])


def signature(function: Function, *, bound: bool) -> inspect.Signature:
    """The signature of a definition; annotations as text, defaults as their source.

    Args:
        bound: leave out the first parameter (self or cls).
    """
    spec = function.args
    kinds = inspect.Parameter
    positional = [(a, kinds.POSITIONAL_ONLY) for a in spec.posonlyargs] + [(a, kinds.POSITIONAL_OR_KEYWORD) for a in spec.args]
    without = len(positional) - len(spec.defaults)
    parameters = [
        _parameter(argument, kind, spec.defaults[i - without] if i >= without else None)
        for i, (argument, kind) in enumerate(positional)
    ]
    if bound:
        parameters = parameters[1:]
    if spec.vararg:
        parameters.append(_parameter(spec.vararg, kinds.VAR_POSITIONAL, None))
    parameters.extend(
        _parameter(a, kinds.KEYWORD_ONLY, default) for a, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True)
    )
    if spec.kwarg:
        parameters.append(_parameter(spec.kwarg, kinds.VAR_KEYWORD, None))
    return inspect.Signature(parameters)


def returned(function: Function) -> str | None:
    """The name a function's return annotation gives, without quotes; None where it has none."""
    if function.returns is None:
        return None
    return ast.unparse(function.returns).strip("'\"")


def decorators(node: Function | ast.ClassDef) -> set[str]:
    """The last word of every decorator: {"overload", "classmethod"}."""
    return {ast.unparse(d.func if isinstance(d, ast.Call) else d).rsplit(".", 1)[-1] for d in node.decorator_list}


def _is_overload(node: Function | ast.ClassDef) -> bool:
    return "overload" in decorators(node)


def _parameter(argument: ast.arg, kind: inspect._ParameterKind, default: ast.expr | None) -> inspect.Parameter:
    return inspect.Parameter(
        argument.arg,
        kind,
        default=inspect.Parameter.empty if default is None else ast.unparse(default),
        annotation=inspect.Parameter.empty if argument.annotation is None else ast.unparse(argument.annotation).strip("'\""),
    )


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those inside if, try and with included."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for block in _BLOCKS:
                yield from _statements(getattr(statement, block, []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)
        else:
            yield statement
