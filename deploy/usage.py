"""What `make containers` does with the finished roots: what compose.yaml would, as far as one root goes."""

import subprocess
from pathlib import Path
from typing import Any

from deploy.chroot import Image, account, run

ROOT = Path(__file__).parents[1]
# A lock that a killed container left: its pid is that of the first process here too.
STALE_LOCK = '{"/workspace/data/prepared": {"write": {"pid": 1, "cmd": "dvc repro prepare"}}}'
HOSTS = "127.0.0.1 localhost mlflow prefect s3 serving\n"
SQLITE = {  # no PostgreSQL and no S3 in one root
    "MLFLOW_BACKEND_STORE_URI": "sqlite:////tmp/mlflow.db",
    "MLFLOW_ARTIFACTS_DESTINATION": "/tmp/artifacts",
    "PREFECT_API_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////tmp/prefect.db",
}
HEALTHY = """
healthy() {  # the name of the service that was just started, then the command of its health check
    name=$1; shift
    for attempt in $(seq 120); do
        if "$@" 2>/dev/null; then echo "$name is healthy"; return; fi
        kill -0 $! || break
        sleep 1
    done
    cat "/tmp/$name.log"; echo "$name is not healthy"; exit 1
}
page() {  # the name of a service, then the URL of its UI
    python -c 'import sys, urllib.request; assert b"<html" in urllib.request.urlopen(sys.argv[1]).read().lower()' "$2"
    echo "$1 has a UI"
}
"""
USE_OF_TRAIN = """
python -c 'import timm, mlflow, prefect, dvc, great_expectations, boto3, psycopg2, asyncpg'
python -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
entrypoint.sh dvc repro --quiet validate
if grep -qs '"pid": 1,' /workspace/.dvc/tmp/rwlock; then echo "the stale lock is still there"; exit 1; fi
"""
USE_OF_SERVE = """
for name in torch timm mlflow grpo_rm pipelines; do
    if python -c "import $name" 2>/dev/null; then echo "serve has $name"; exit 1; fi
done
if touch /app/written 2>/dev/null; then echo "the root is not read-only"; exit 1; fi
"""


def quoted(words: list[str]) -> str:
    """The words as a shell reads them back."""
    return " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)


def started(name: str, service: dict[str, Any], image: Image) -> str:
    """A script that starts a service as compose would, and waits for its health check."""
    variables = {name: SQLITE.get(name, value) for name, value in service["environment"].items()}
    command = service.get("entrypoint", image.entrypoint) + service.get("command", image.command)
    check = service["healthcheck"]["test"][1:] if "healthcheck" in service else image.healthcheck
    environment = [f"{name}={value}" for name, value in variables.items()]
    log = f"/tmp/{name}.log"
    return f"env {quoted(environment + command)} >{log} 2>&1 &\nhealthy {name} {quoted(check)}\n"


def network(image: Image) -> list[tuple[Path, str]]:
    """Mounts that give the names of the services to this machine's loopback."""
    hosts = image.root.with_name("hosts")
    hosts.write_text(HOSTS)
    return [(hosts, "/etc/hosts")]


def use_train(image: Image, services: dict[str, Any]) -> str:
    """Runs stages of dvc.yaml on a clone at /workspace, with a stale lock of DVC in it; starts servers and worker."""
    clone = image.path("/workspace")
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, clone], check=True)
    (clone / ".dvc/tmp").mkdir(parents=True)
    (clone / ".dvc/tmp/rwlock").write_text(STALE_LOCK)
    uid, gid, _ = account(image)
    subprocess.run(["chown", "--recursive", f"{uid}:{gid}", clone], check=True)
    script = HEALTHY + USE_OF_TRAIN
    script += started("mlflow", services["mlflow"], image) + "page mlflow http://mlflow:5000\n"
    script += started("prefect", services["prefect"], image) + "page prefect http://prefect:4200\n"
    script += started("worker", services["worker"], image)
    return run(image, script, mounts=network(image), is_isolated=True).stdout


def use_serve(image: Image, services: dict[str, Any]) -> str:
    """Starts the server on a read-only root, without a network, and waits for the health check of the image."""
    script = HEALTHY + USE_OF_SERVE + started("serving", services["serving"], image)
    return run(image, script, mounts=network(image), is_isolated=True, is_read_only=True).stdout
