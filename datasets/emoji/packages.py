"""The npm packages that the images and their names come from: fetched at one version, checked, read."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One npm package at one version, and the sha256 of its tarball."""

    name: str
    version: str
    sha256: str
    licence: str  # of the part that is used here, SPDX
    origin: str

    @property
    def spec(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def tarball(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


FLUENT = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "MIT",
    "Fluent Emoji, Microsoft Corporation",
)
TWITTER = Package(
    "emoji-datasource-twitter",
    "16.0.0",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "CC-BY-4.0",
    "Twemoji 16.0.1, Twitter, Inc and other contributors",
)
GOOGLE = Package(
    "emoji-datasource-google",
    "16.0.0",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "Apache-2.0",
    "Noto Emoji 2.048, Google LLC",
)
LABELS = Package(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT",
    "CLDR short names, tags and groups",
)


def fetch(package: Package, work: Path) -> Path:
    """Returns the package's tarball, packed by npm into `work` if it is not there yet; checks its sha256."""
    path = work / package.tarball
    if not path.exists():
        npm = shutil.which("npm") or sys.exit("error: npm is not on the PATH; install Node.js and run again")
        print(f"npm pack {package.spec}")
        command = [npm, "pack", package.spec, "--silent", "--pack-destination", str(work)]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            sys.exit(f"error: `npm pack {package.spec}` failed; is the npm registry reachable?")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        sys.exit(f"error: {path} has sha256 {digest}, not {package.sha256}; delete it and run again")
    return path


def read_members(tarball: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Returns the wanted regular files of a tarball by name."""
    with tarfile.open(tarball) as tar:
        opened = ((member.name, tar.extractfile(member)) for member in tar if wanted(member.name))
        return {name: stream.read() for name, stream in opened if stream}
