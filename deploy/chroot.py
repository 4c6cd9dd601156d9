"""Executes the steps of a Dockerfile in directories instead of images: debootstrap, chroot, namespaces of the kernel.

Every step runs in namespaces of its own for mounts and processes. When it ends, however it ends, the kernel takes its
mounts and processes away: from outside, a root never contains anything but its own files, so it can be removed safely.
"""

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.dockerfile import Instruction, Stage, assignments, command, substitute

CACHE = Path.home() / ".cache"
# Debian's Python 3.11 stands for the one of the base image, under the names that it has there.
BASE_PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
BASE_SETUP = """
ln -s /usr/bin/python3 /usr/local/bin/python
ln -s /usr/bin/pip3 /usr/local/bin/pip
rm /usr/lib/python3*/EXTERNALLY-MANAGED
"""
# How this machine reaches apt and the package index: for the steps that build, never part of the root.
CONFIGURATION = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs", "/etc/apt/apt.conf.d", "/etc/pip.conf", "/etc/uv")
CONFIGURATION_VARIABLES = re.compile(r"(PIP|UV)_|SSL_CERT_|(REQUESTS|CURL)_CA_BUNDLE$|(https?|no|all)_proxy$", re.I)


@dataclass
class Image:
    """A root directory and what the instructions said of how to run it."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"})
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "0"
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)

    def path(self, inside: str) -> Path:
        """Where a path of the image (absolute, or relative to its workdir) lies on this machine."""
        return self.root / str(PurePosixPath(self.workdir, inside)).lstrip("/")

    def copy(self, root: Path) -> "Image":
        subprocess.run(["cp", "--archive", "--reflink=auto", self.root, root], check=True)
        return replace(self, root=root, env=dict(self.env), arguments=dict(self.arguments))


def debian(tarball: Path, root: Path) -> None:
    """Unpacks a minimal Debian bookworm with Python 3.11 into root; makes the tarball if there is none (a minute)."""
    if not tarball.exists():
        tarball.parent.mkdir(parents=True, exist_ok=True)
        debootstrap = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", str(root)]
        subprocess.run(debootstrap, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["chroot", root, "/bin/sh", "-ec", BASE_SETUP], check=True)
        partial = tarball.with_suffix(".partial")
        with tarfile.open(partial, "w") as archive:
            archive.add(root, arcname=".")
        partial.rename(tarball)
    else:
        root.mkdir()
        subprocess.run(["tar", "--extract", "--numeric-owner", "--file", tarball, "--directory", root], check=True)


def account(image: Image) -> tuple[str, str, str]:
    """User id, group id and home of the image's user, from its own passwd."""
    for line in (image.root / "etc/passwd").read_text().splitlines():
        name, _, uid, gid, _, home, _ = line.split(":")
        if image.user in (name, uid):
            return uid, gid, home
    raise ValueError(f"got USER {image.user}, expected a user of the image")


def run(
    image: Image,
    script: str,
    *,
    env: dict[str, str] | None = None,
    mounts: list[tuple[Path, str]] | None = None,
    is_isolated: bool = False,
    is_read_only: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs a shell script in the image, as its user, in its workdir and with its environment only.

    Args:
        mounts: Pairs of a file or directory of this machine and where the script finds it.
        is_isolated: Its network is a loopback of its own, so that every port is free.
        is_read_only: Only /tmp can be written.

    Raises:
        subprocess.CalledProcessError: the script failed; stdout has its output.
    """
    uid, gid, home = account(image)
    variables = image.env | {"HOME": home} | (env or {})
    lines = ["set -e", f"root={image.root}", 'mount --bind "$root" "$root"']
    for number, (source, target) in enumerate(mounts or []):
        place = image.path(target)
        (place if source.is_dir() else place.parent).mkdir(parents=True, exist_ok=True)
        if not source.is_dir():
            place.touch()
        lines.append(f'mount --rbind "$M{number}" {place}')
    lines.append('mount --rbind /dev "$root/dev"; mount -t tmpfs tmpfs "$root/tmp"; chmod 1777 "$root/tmp"')
    if is_read_only:
        lines.append('mount -o remount,bind,ro "$root"')
    if is_isolated:
        lines.append("ip link set lo up")
    lines.append('mount -t proc proc "$root/proc"')
    lines.append(f'exec chroot --userspec={uid}:{gid} --groups= "$root" /usr/bin/env -i "$@"')
    sources = {f"M{number}": str(source) for number, (source, _) in enumerate(mounts or [])}
    namespaces = ["--mount", "--pid", "--fork", "--kill-child"] + ["--net"] * is_isolated
    return subprocess.run(
        ["unshare", *namespaces, "/bin/sh", "-c", "\n".join(lines), "sh"]
        + [f"{name}={value}" for name, value in variables.items()]
        + ["/bin/sh", "-ec", f"cd {image.workdir}\n{script}"],
        check=True,
        env=os.environ | sources,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_step(image: Image, step: Instruction) -> None:
    """RUN, with the cache mounts it asks for and this machine's way to apt and the package index."""
    mounts = [(path, str(path)) for path in map(Path, CONFIGURATION) if path.exists()]
    for name in ("pip", "uv"):
        if (settings := Path.home() / ".config" / name).is_dir():
            mounts.append((settings, f"/root/.config/{name}"))
    for mount in step.flags.get("mount", []):
        options = dict(option.split("=", 1) for option in mount.split(","))
        if set(options) != {"type", "target"} or options["type"] != "cache" or "/root/.cache/" not in options["target"]:
            raise ValueError(f"line {step.line}: got --mount={mount}, expected type=cache,target=/root/.cache/NAME")
        cache = CACHE / options["target"].removeprefix("/root/.cache/")
        cache.mkdir(parents=True, exist_ok=True)
        mounts.append((cache, options["target"]))
    configuration = {name: value for name, value in os.environ.items() if CONFIGURATION_VARIABLES.match(name)}
    run(image, step.value, env=configuration | image.arguments, mounts=mounts)


def copy_step(image: Image, step: Instruction, images: dict[str, Image], context: Path) -> None:
    """COPY from the context, or from another stage: a directory gives its content, a file itself."""
    *sources, target = substitute(step.value, image.arguments | image.env).split()
    source_root = images[step.flags["from"][0]].root if "from" in step.flags else context
    place = image.path(target)
    ignore = None if "from" in step.flags else ignored(context)
    for source in (source_root / name.lstrip("/") for name in sources):
        if source.is_dir():
            shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True, ignore=ignore)
        else:
            into = place / source.name if target.endswith("/") else place
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, into)


def ignored(context: Path) -> Callable[[Any, list[str]], set[str]]:
    """What .dockerignore keeps out of every directory (its lines that start with **/)."""
    lines = (context / ".dockerignore").read_text().splitlines()
    return shutil.ignore_patterns(*(line.removeprefix("**/") for line in lines if line.startswith("**/")))


def execute(step: Instruction, image: Image, images: dict[str, Image], context: Path) -> None:
    """One instruction on one image.

    Raises:
        subprocess.CalledProcessError: a RUN step failed.
        ValueError: a variable or a mount that is not known.
    """
    variables = image.arguments | image.env
    match step.name:
        case "RUN":
            run_step(image, step)
        case "COPY":
            copy_step(image, step, images, context)
        case "ENV":
            image.env |= assignments(step.value, variables)
        case "ARG":
            image.arguments |= assignments(step.value, variables)
        case "USER":
            image.user = substitute(step.value, variables)
        case "WORKDIR":
            image.workdir = str(PurePosixPath(image.workdir, substitute(step.value, variables)))
            image.path(".").mkdir(parents=True, exist_ok=True)
        case "HEALTHCHECK":
            image.healthcheck = command(step.value)
        case "ENTRYPOINT":
            image.entrypoint, image.command = command(step.value), []
        case "CMD":
            image.command = command(step.value)


def build(stage: Stage, images: dict[str, Image], work: Path, context: Path) -> Image:
    """The image of a stage, below work; `images` has those it needs. Says what it does."""
    image = images[stage.base].copy(work / stage.name)
    for step in stage.instructions:
        print(f"{stage.name}: {step.name} {step.value[:100]}", flush=True)
        execute(step, image, images, context)
    return image
