"""The import rule of the package, read from the source: a layer sees only the layers below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "worldline"
LAYERS = [  # units of one entry never import each other
    ["errors"],
    ["shapes"],
    ["records"],
    ["media", "nn", "diffusion", "worlds"],
    ["text", "vae", "dit", "parallel", "curate", "data"],
    ["checkpoints", "caption"],
    ["train", "generate", "eval"],
    ["recipes"],  # import anything; only the command line looks one up by name
    ["serve"],
    ["cli", "__main__", "__init__"],
]
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}


def absolute(node: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> Iterator[str]:
    """Dotted names that an import statement in `module` may bind, relative imports resolved."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        base = ".".join(parts + ([node.module] if node.module else []))
    yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports in `source`, the text of `module`, that reach sideways, upwards or into recipes."""
    unit = (module.split(".") + ["__init__"])[1]
    bad = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for name in absolute(node, module, is_package):
            root, *rest = name.split(".")
            if root in ("recipes", "benchmarks", "tests"):
                bad.append(f"{module}:{node.lineno} imports {name}, which no module of the package may")
            if root != "worldline" or rest == ["__version__"]:
                continue
            target = rest[0] if rest and rest[0] in RANK else "__init__"
            if target != unit and RANK[target] >= RANK[unit]:
                bad.append(f"{module}:{node.lineno} ({unit}) imports {name} ({target})")
    return bad


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_every_unit_has_a_layer() -> None:
    units = {(name.split(".") + ["__init__"])[1] for name, _ in modules()}
    assert units <= RANK.keys()


def test_no_import_reaches_sideways_or_up() -> None:
    bad = [
        line
        for name, path in modules()
        for line in violations(path.read_text(encoding="utf-8"), name, path.name == "__init__.py")
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("source", "module", "is_package", "caught"),
    [
        ("from worldline.dit.model import DiT", "worldline.vae.model", False, True),
        ("from ..dit import model", "worldline.vae.model", False, True),
        ("from .. import dit", "worldline.vae", True, True),
        ("from ..train import loop", "worldline.eval", True, True),
        ("from .dit import model", "worldline.text", False, True),
        ("def f():\n    import worldline.train.loop", "worldline.generate.pipeline", False, True),
        ("from worldline import generate", "worldline.checkpoints.folder", False, True),
        ("from worldline import load", "worldline.train.loop", False, True),
        ("import recipes.tiny", "worldline.cli", False, True),
        ("from worldline import __version__", "worldline.media.provenance", False, False),
        ("from . import captions", "worldline.worlds.scene", False, False),
        ("from .scene import Scene", "worldline.worlds", True, False),
        ("from ..errors import UserError", "worldline.worlds.scene", False, False),
        ("from worldline.nn.rope import rope", "worldline.dit.model", False, False),
        ("from worldline.train import loop", "worldline.cli", False, False),
    ],
)
def test_the_rule_catches_what_it_should(source: str, module: str, is_package: bool, caught: bool) -> None:
    assert bool(violations(source, module, is_package)) is caught


@pytest.mark.parametrize("module", ["worldline", "worldline.cli"])
def test_import_stays_light(module: str) -> None:
    """`worldline --help` answers at once because nothing heavy is imported at module level."""
    code = f"import {module}, sys; print([m for m in ('torch', 'av', 'scipy', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
