"""Checks Dockerfile and compose.yaml where no container engine runs: `make containers`.

hadolint and the schema of compose first; then every step of the Dockerfile is executed in a clean Debian root, and what
comes out is used as compose.yaml would use it.
"""

import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from deploy.chroot import CACHE, Image, build, debian
from deploy.compose import load, required_variables
from deploy.dockerfile import built_from, parse
from deploy.usage import use_serve, use_train

ROOT = Path(__file__).parents[1]
TARBALL = CACHE / "grpo-rm" / "debian-bookworm-python3.11.tar"
TOOLS = {"debootstrap": "debootstrap", "unshare": "util-linux", "ip": "iproute2", "git": "git"}
FREE_GB = 25  # the roots of `train` hold torch with its CUDA libraries twice, and the clone
USES = {"serve": use_serve, "train": use_train}


def missing() -> list[str]:
    """What keeps the steps from being executed here, each with how to get it."""
    found = [f"{tool} (Debian: apt install {package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if os.geteuid() != 0:
        found.append("the rights of root, for chroot and mount (run it as root)")
    place = tempfile.gettempdir()
    if (free := shutil.disk_usage(place).free / 1e9) < FREE_GB:
        found.append(f"{FREE_GB} GB of disk in {place}, which has {free:.0f} (TMPDIR names another place)")
    return found


def lint() -> dict[str, Any]:
    """hadolint on the Dockerfile, and compose.yaml, its variables put in, against the schema; returns its services."""
    subprocess.run(["hadolint", ROOT / "Dockerfile"], check=True)
    secret = base64.urlsafe_b64encode(os.urandom(32)).decode()  # in the form that MLflow wants its key
    compose = load(ROOT / "compose.yaml", dict.fromkeys(required_variables(ROOT / ".env.example"), secret))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(compose, file)
        file.flush()
        subprocess.run(["check-jsonschema", "--builtin-schema", "vendor.compose-spec", file.name], check=True)
    services: dict[str, Any] = compose["services"]
    return services


def size_mb(root: Path) -> int:
    done = subprocess.run(["du", "--summarize", "--block-size=1M", root], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0])


def execute(targets: list[str], services: dict[str, Any], work: Path) -> None:
    """Builds the targets below work and uses each."""
    stages = parse((ROOT / "Dockerfile").read_text())
    debian(TARBALL, work / "debian")
    images = {stage.base: Image(work / "debian") for stage in stages.values() if stage.base not in stages}
    print(f"base: {size_mb(work / 'debian')} MB, Debian with its Python 3.11")
    for target in targets:
        start = time.monotonic()
        for name in built_from(stages, target):
            if name not in images:
                images[name] = build(stages[name], images, work, ROOT)
        print(
            f"{target}: {size_mb(images[target].root)} MB in all, built in {time.monotonic() - start:.0f} s", flush=True
        )
        start = time.monotonic()
        print(USES[target](images[target], services), end="")
        print(f"{target}: used for {time.monotonic() - start:.0f} s\n", flush=True)


def main() -> None:
    """Checks all, or the targets named on the command line; ends with 1 and the output of the step that failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        services = lint()
        if lacking := missing():
            sys.exit(
                "error: the files are well-formed, but to execute their steps there lacks\n- " + "\n- ".join(lacking)
            )
        work = Path(tempfile.mkdtemp(prefix="grpo-rm-containers-"))
        try:
            execute(sys.argv[1:] or list(USES), services, work)
        finally:
            subprocess.run(["rm", "-rf", "--one-file-system", work], check=True)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.stdout or ''}\nerror: the last step ended with {error.returncode}, expected 0")


if __name__ == "__main__":
    main()
