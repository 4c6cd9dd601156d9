"""Checks Dockerfile and compose.yaml where no container engine runs: `make containers`.

hadolint and the schema of compose first; then every step of the Dockerfile is executed in a clean Debian root, and what
comes out is used as a container would be: stages of dvc.yaml on a clone, the health check against the server.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from deploy.chroot import CACHE, Image, account, build, debian, run
from deploy.compose import load, variables_of
from deploy.dockerfile import built_from, parse

ROOT = Path(__file__).parents[1]
TARBALL = CACHE / "grpo-rm" / "debian-bookworm-python3.11.tar"
TOOLS = {"debootstrap": "debootstrap", "chroot": "coreutils", "unshare": "util-linux", "mount": "mount", "git": "git"}
FREE_GB = 25  # the roots of `train` hold torch with its CUDA libraries three times

# A lock that a killed container left: its pid is the one of the first process here too.
STALE_LOCK = '{"/workspace/data/prepared": {"write": {"pid": 1, "cmd": "dvc repro prepare"}}}'
USE_OF_TRAIN = """
python -c 'import timm, mlflow, prefect, dvc, great_expectations, boto3, psycopg2, asyncpg'
python -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
python -c 'import grpo_rm, pipelines; print("installed:", grpo_rm.__file__)'
prefect version | head -1
entrypoint.sh dvc repro --quiet validate
test ! -e /workspace/.dvc/tmp/rwlock || ! grep -q '"pid": 1' /workspace/.dvc/tmp/rwlock
git status --short
"""
USE_OF_SERVE = """
for name in torch timm mlflow grpo_rm pipelines; do
    if python -c "import $name" 2>/dev/null; then echo "serve has $name"; exit 1; fi
done
test "$(id -u)" != 0
if touch /app/written 2>/dev/null; then echo "the root is not read-only"; exit 1; fi
{command} & server=$!
for attempt in $(seq 30); do
    kill -0 $server
    if {healthcheck} 2>/dev/null; then echo "healthy after $attempt s"; kill $server; wait $server || true; exit; fi
    sleep 1
done
{healthcheck}
"""


def missing() -> list[str]:
    """What keeps the steps from being executed here, each with how to get it."""
    found = [f"{tool} (Debian: apt install {package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if os.geteuid() != 0:
        found.insert(0, "the rights of root, for debootstrap and chroot (run it as root)")
    free = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
    if free < FREE_GB:
        found.append(
            f"{FREE_GB} GB of disk in {tempfile.gettempdir()}, {free:.0f} are free (TMPDIR names another place)"
        )
    return found


def lint() -> None:
    """hadolint on the Dockerfile, compose.yaml with all variables put in against the schema of compose."""
    subprocess.run(["hadolint", ROOT / "Dockerfile"], check=True)
    document = load(ROOT / "compose.yaml", dict.fromkeys(variables_of(ROOT / ".env.example"), "value"))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(document, file)
        file.flush()
        subprocess.run(["check-jsonschema", "--builtin-schema", "vendor.compose-spec", file.name], check=True)


def quoted(words: list[str]) -> str:
    return " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)


def use_train(image: Image) -> str:
    """Runs stages of dvc.yaml on a clone of this repository at /workspace, with a stale lock of DVC in it."""
    clone = image.path("/workspace")
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, clone], check=True)
    (clone / ".dvc/tmp").mkdir(parents=True)
    (clone / ".dvc/tmp/rwlock").write_text(STALE_LOCK)
    uid, gid, _ = account(image)
    subprocess.run(["chown", "--recursive", f"{uid}:{gid}", clone], check=True)
    return run(image, USE_OF_TRAIN).stdout


def use_serve(image: Image) -> str:
    """Starts the server on a read-only root and waits until the health check of the image succeeds."""
    script = USE_OF_SERVE.replace("{command}", quoted(image.command)).replace(
        "{healthcheck}", quoted(image.healthcheck)
    )
    return run(image, script, is_read_only=True).stdout


USES = {"serve": use_serve, "train": use_train}


def size_mb(root: Path) -> int:
    done = subprocess.run(["du", "--summarize", "--block-size=1M", root], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0])


def execute(targets: list[str], work: Path) -> None:
    """Builds the targets below work and uses each."""
    stages = parse((ROOT / "Dockerfile").read_text())
    debian(TARBALL, work / "debian")
    images = {stage.base: Image(work / "debian") for stage in stages.values() if stage.base not in stages}
    base_mb = size_mb(work / "debian")
    for target in targets:
        start = time.monotonic()
        for name in built_from(stages, target):
            if name not in images:
                images[name] = build(stages[name], images, work, ROOT)
        size = size_mb(images[target].root)
        built = time.monotonic() - start
        print(USES[target](images[target]), end="")
        print(f"{target}: {size} MB, of them {base_mb} MB Debian with Python; built in {built:.0f} s\n", flush=True)


def main() -> None:
    """Checks all, or the targets named on the command line; ends with 1 and the output of the step that failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lint()
    if lacking := missing():
        sys.exit(
            "hadolint and the schema are content. To execute the steps, this machine lacks:\n- " + "\n- ".join(lacking)
        )
    work = Path(tempfile.mkdtemp(prefix="grpo-rm-containers-"))
    try:
        execute(sys.argv[1:] or list(USES), work)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.stdout or ''}\nerror: a step failed with {error.returncode}, see above")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
