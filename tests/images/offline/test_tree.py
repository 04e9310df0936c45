"""The root tree: its pieces give the files back, and attnkit-run starts a command in it with the host's driver bound in."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from images.offline import bundle, tree

RUN = Path(tree.__file__).with_name("attnkit_run.sh")


def _exported() -> io.BytesIO:
    """A file system as an engine exports it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind in (("dev", tarfile.DIRTYPE), ("usr", tarfile.DIRTYPE), ("usr/link", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.linkname = kind, 0o755, "data" if kind == tarfile.SYMTYPE else ""
            archive.addfile(member)
        for name, size in (("dev/console", 0), (".dockerenv", 0), ("usr/data", 300_000)):
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(os.urandom(size)))
    out.seek(0)
    return out


def test_the_pieces_give_the_tree_back(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    with packed.open("wb") as file:
        tree.write(_exported(), ["PATH=/bin", "A=b c"], file, 1)
    folder = tmp_path / "pieces"
    folder.mkdir()
    with packed.open("rb") as file:
        pieces = tree.split(file, folder, 100_000)
    assert [piece.name for piece in pieces] == ["piece-00", "piece-01", "piece-02", "piece-03"]
    (folder / "unpack.sh").write_text(tree.UNPACK, encoding="utf-8")
    bundle.write_sums(folder)
    unpack = ["sh", str(folder / "unpack.sh"), str(tmp_path / "root")]
    subprocess.run(unpack, check=True, capture_output=True)
    root = tmp_path / "root"
    assert (root / tree.ENVIRONMENT).read_text(encoding="utf-8") == "PATH=/bin\nA=b c\n"
    assert (root / "usr" / "link").read_bytes() == (root / "usr" / "data").read_bytes()
    assert (root / "usr" / "data").stat().st_size == 300_000
    assert sorted(path.name for path in root.iterdir()) == ["dev", "etc", "usr"]
    assert list((root / "dev").iterdir()) == []
    assert subprocess.run(unpack, check=False, capture_output=True).returncode == 2, "an existing folder is overwritten"
    (folder / "piece-01").write_bytes(b"damaged")
    shutil.rmtree(root)
    assert subprocess.run(unpack, check=False, capture_output=True).returncode != 0
    assert not root.exists()


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """A tree with a shell, cat and env, and what they link to, as an ordinary user may read it."""
    root = tmp_path / "root"
    (root / "opt" / "attnkit").mkdir(parents=True)
    (root / "etc" / "attnkit").mkdir(parents=True)
    (root / tree.ENVIRONMENT).write_text("PATH=/usr/bin\nOF_IMAGE=a b\nOTHER=image\n", encoding="utf-8")
    (root / "usr" / "bin").mkdir(parents=True)
    for program in ("sh", "cat", "env", "id"):
        path = shutil.which(program)
        assert path is not None
        shutil.copy(path, root / "usr" / "bin")
        for word in subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout.split():
            if word.startswith("/"):
                (root / word[1:]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, root / word[1:])
    driver = tmp_path / "driver"
    driver.mkdir()
    (driver / "libcuda.so.580.1").write_text("the driver\n", encoding="utf-8")
    (driver / "libcuda.so.1").symlink_to("libcuda.so.580.1")
    (tmp_path / "data.txt").write_text("of the host\n", encoding="utf-8")
    return root


COMMAND = """
cat /data/data.txt /usr/local/nvidia/lib64/libcuda.so.1
echo "$OF_IMAGE, $OTHER, $GIVEN, ${LEAKED:-not leaked}, $(id -u), $PWD"
test -c /dev/null && test -r /proc/self/status && : > /tmp/written && exit 7
"""


@pytest.mark.parametrize("user", ["this", "an ordinary one"] if os.geteuid() == 0 else ["this"])
def test_a_command_runs_in_the_tree(small_tree: Path, user: str) -> None:
    folder = small_tree.parent
    command = [
        "sh",
        str(RUN),
        str(small_tree),
        "--driver",
        str(folder / "driver"),
        "--bind",
        f"{folder}/data.txt:/data/data.txt",
    ]
    command += ["--env", "OTHER=given", "--env", "GIVEN", "--", "sh", "-c", COMMAND]
    if user != "this":
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534, follow_symlinks=False)
        for path in folder.parents:
            path.chmod(path.stat().st_mode | 0o011)
        command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *command]
    given = {"PATH": os.environ["PATH"], "GIVEN": "of the shell", "LEAKED": "leaked"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=given)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == "of the host\nthe driver\na b, given, of the shell, not leaked, 0, /tmp\n"
    assert not (small_tree / "tmp" / "written").exists(), "what is written to /tmp stays in the tree"
    assert not (small_tree / "proc" / "self").exists(), "a mount is left behind"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/nowhere", "--", "true"], "/nowhere: no tree of an attnkit image"),
        (["TREE", "--", *()], "usage: attnkit-run TREE"),
        (["TREE", "--wrong", "x", "--", "true"], "unknown option --wrong"),
        (["TREE", "--bind", "/no/such:/x", "--", "true"], "--bind /no/such:/x: there is no /no/such"),
    ],
)
def test_a_wrong_call_is_refused(small_tree: Path, words: list[str], said: str) -> None:
    command = ["sh", str(RUN), *(str(small_tree) if word == "TREE" else word for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
