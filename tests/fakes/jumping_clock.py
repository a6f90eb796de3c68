"""A wall clock that jumps: libfaketime in processes started with `env`, its offset in a file."""

from __future__ import annotations

from pathlib import Path

LIBRARIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib", "/usr/local/lib")


class JumpingClock:
    """Wall-clock time of the processes that get `env`, off by what was last set. Their monotonic time goes on."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """So far from the true time, from now on."""
        aside = self._file.with_suffix(".writing")
        aside.write_text(f"{seconds:+d}\n")
        aside.replace(self._file)

    @property
    def env(self) -> dict[str, str]:
        """Of a process whose clock is this one."""
        library = self.library()
        assert library is not None
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    @staticmethod
    def library() -> Path | None:
        """Where Debian's package `faketime` puts it; None where it is not installed."""
        found = (Path(folder) / "faketime" / "libfaketimeMT.so.1" for folder in LIBRARIES)
        return next((path for path in found if path.is_file()), None)
