"""A file is replaced completely or not at all."""

import os
import subprocess
import sys

import pytest

from patchword.files.atomic_write import atomic_write


def test_replaces_the_file_when_the_block_ends(tmp_path):
    """The new content appears only when the block has ended."""
    path = tmp_path / "new folder" / "numbers.json"
    with atomic_write(path) as file:
        file.write("first\r\nä")
    assert path.read_bytes() == "first\r\nä".encode()
    with atomic_write(path, "wb") as file:
        file.write(b"second")
        assert path.read_bytes() == "first\r\nä".encode()
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["numbers.json"]


def test_keeps_the_old_file_when_the_block_fails(tmp_path):
    """An exception keeps the old file and leaves no temporary file."""
    path = tmp_path / "numbers.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        print("half", 1 // 0, file=file)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["numbers.json"]


def test_keeps_the_old_file_when_the_process_is_killed(tmp_path):
    """A killed process leaves the old file unchanged."""
    path = tmp_path / "numbers.json"
    path.write_text("old")
    program = (
        "import os, signal, sys\n"
        "from patchword.files.atomic_write import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write('half')\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    assert path.read_text() == "old"


def test_links_and_devices_stay(tmp_path):
    """A link still points to its file, and a pipe or a device is not replaced by a file."""
    (tmp_path / "link").symlink_to("file")
    with atomic_write(tmp_path / "link") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    reader, writer = os.pipe()
    with atomic_write(f"/dev/fd/{writer}") as file:
        file.write("new")
    assert os.read(reader, 9) == b"new"
    os.close(reader)
    os.close(writer)
