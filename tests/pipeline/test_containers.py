"""Dockerfile, compose.yaml and the locks, without an engine. `make containers` also executes the Dockerfile's steps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy import dockerfile
from deploy.compose import interpolate, load, required_variables

ROOT = Path(__file__).parents[2]
SECRETS = {"POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"}
SECRETS |= {"GRPO_RM_WEBHOOK_SECRET"}


@pytest.fixture(scope="module")
def stages():
    return dockerfile.parse((ROOT / "Dockerfile").read_text())


@pytest.fixture(scope="module")
def services():
    return load(ROOT / "compose.yaml", dict.fromkeys(SECRETS, "secret"))["services"]


def pinned(lock):
    text = (ROOT / lock).read_text()
    return set(re.findall(r"^([a-z0-9.\[\]_-]+==\S+(?: ; [^\\]+)?)", text, flags=re.MULTILINE))


def names(requirements):
    return {requirement.split("==")[0] for requirement in requirements}


def steps(stages, target, name):
    return [
        step
        for stage in dockerfile.built_from(stages, target)
        for step in stages[stage].instructions
        if step.name == name
    ]


# What the images hold


def test_hadolint_has_nothing_to_say():
    done = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_can_fail(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp\n")
    assert subprocess.run(["hadolint", tmp_path / "Dockerfile"], capture_output=True).returncode == 1


def test_the_server_gets_nothing_of_training():
    assert names(pinned("requirements.serve.lock")).isdisjoint(
        {"torch", "torchvision", "timm", "mlflow", "dvc", "prefect"}
    )
    assert {"fastapi", "onnxruntime", "uvicorn"} <= names(pinned("requirements.serve.lock"))


def test_the_locks_agree():
    assert pinned("requirements.serve.lock") <= pinned("requirements.lock")
    assert "torch" in names(pinned("requirements.lock"))


def test_the_base_image_is_pinned_by_digest(stages):
    images = {stage.base for stage in stages.values()} - set(stages)
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", image) for image in images)
    assert len(images) == 1


def test_everything_is_installed_with_hashes_and_bytecode(stages):
    for target in ("train", "serve"):
        runs = [step.value for step in steps(stages, target, "RUN")]
        assert any(
            re.search(r"uv pip sync .*--require-hashes --compile-bytecode requirements\S*\.lock", run) for run in runs
        )


def test_uv_is_the_one_of_the_makefile(stages):
    version = re.search(r"^UV_VERSION := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1]
    assert f"uv=={version}" in " ".join(step.value for step in steps(stages, "train", "RUN"))


def test_the_images_are_as_silent_as_the_stages(stages):
    """Telemetry is off by pipelines/__init__.py; in an image also for what is started without it."""
    (env,) = (step for step in stages["base"].instructions if step.name == "ENV")
    settings = dockerfile.assignments(env.value, {"PATH": "/bin"})
    source = (ROOT / "pipelines" / "__init__.py").read_text()
    expected = dict(re.findall(r'^    "([A-Z_]+)": "(\w+)",', source, flags=re.MULTILINE))
    assert "DO_NOT_TRACK" in expected
    assert expected.items() <= settings.items()


@pytest.mark.parametrize("target", ["train", "serve"])
def test_images_end_as_a_user_without_rights(stages, target):
    assert steps(stages, target, "USER")[-1].value == "$USER_ID"
    assert [step.value for step in steps(stages, target, "ARG")] == ["USER_ID=1000"]


def test_no_file_names_a_package_index():
    for path in (ROOT / "Dockerfile", ROOT / "requirements.lock", ROOT / "requirements.serve.lock"):
        assert not re.search(r"index-url|find-links|https?://(?!127\.0\.0\.1)", path.read_text()), path


def test_the_context_has_exactly_what_is_copied(stages):
    copied = {
        word.rstrip("/")
        for stage in stages.values()
        for step in stage.instructions
        if step.name == "COPY" and "from" not in step.flags
        for word in step.value.split()[:-1]
    }
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == copied
    assert "*" in ignore


# The entrypoint


def entrypoint(workspace, *command, **variables):
    script = ROOT / "deploy" / "entrypoint.sh"
    return subprocess.run(
        [script, *command], cwd=workspace, env=os.environ | variables, check=True, capture_output=True, text=True
    ).stdout


def test_the_lock_of_a_killed_container_goes(tmp_path):
    lock = tmp_path / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(parents=True)
    lock.write_text('{"data": {"write": {"pid": 1, "cmd": "dvc repro"}}}')
    assert entrypoint(tmp_path, "echo", "two words") == "two words\n"
    assert not lock.exists()


def test_the_lock_of_a_living_container_stays(tmp_path):
    lock = tmp_path / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(parents=True)
    script = ROOT / "deploy" / "entrypoint.sh"
    with subprocess.Popen([script, "cat"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        first.stdin.write(b"started\n")
        first.stdin.flush()
        assert first.stdout.readline() == b"started\n"
        lock.write_text("{}")
        entrypoint(tmp_path, "true")
        assert lock.exists()
        first.stdin.close()
    entrypoint(tmp_path, "true")
    assert not lock.exists()


def test_an_empty_volume_gets_a_clone(tmp_path):
    source, volume = tmp_path / "source", tmp_path / "volume"
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-C", source]
    subprocess.run(["git", "init", "--quiet", source], check=True)
    (source / "dvc.yaml").write_text("stages: {}\n")
    subprocess.run([*git, "add", "dvc.yaml"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "first"], check=True)
    (volume / "lost+found").mkdir(parents=True)
    (volume / ".clone").mkdir()  # an attempt that was killed
    assert entrypoint(volume, "cat", "dvc.yaml", GRPO_RM_REPOSITORY=str(source)) == "stages: {}\n"
    (volume / "dvc.yaml").write_text("changed")
    assert entrypoint(volume, "cat", "dvc.yaml", GRPO_RM_REPOSITORY=str(source)) == "changed"


# The services


def test_compose_is_valid(services, tmp_path):
    (tmp_path / "compose.yaml").write_text(
        yaml.safe_dump({"services": services, "volumes": {"postgres": {}, "s3": {}}})
    )
    command = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, tmp_path / "compose.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("secret", sorted(SECRETS))
def test_no_secret_has_a_default(secret):
    with pytest.raises(ValueError, match=rf"\{{{secret}\}} is not set: set it in .env"):
        load(ROOT / "compose.yaml", dict.fromkeys(SECRETS - {secret}, "secret"))


def test_no_secret_is_written_down(services):
    for name, service in services.items():
        for variable, value in (service.get("environment") or {}).items():
            if re.search("PASSWORD|SECRET|KEY", variable):
                assert value == "secret", (name, variable)
            assert not re.search(r"://\w+:(?!secret@)[^@/]+@", value), (name, variable)


def test_the_example_names_all_variables_and_gives_no_value():
    example = (ROOT / ".env.example").read_text()
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text()))
    assert set(re.findall(r"^#?(\w+)=$", example, flags=re.MULTILINE)) == used | {"COMPOSE_PROFILES"}
    assert set(required_variables(ROOT / ".env.example")) == SECRETS | {"COMPOSE_PROFILES"}
    assert not re.search(r"^#?\w+=.", example, flags=re.MULTILINE)


def test_ports_are_published_on_loopback(services):
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"mlflow", "prefect", "serving"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_the_user_chooses_another_address():
    variables = dict.fromkeys(SECRETS, "secret") | {"GRPO_RM_ADDRESS": "10.0.0.5"}
    assert load(ROOT / "compose.yaml", variables)["services"]["mlflow"]["ports"] == ["10.0.0.5:5000:5000"]


def test_every_service_has_a_health_check_or_ends(services, stages):
    in_image = {target for target in ("train", "serve") if steps(stages, target, "HEALTHCHECK")}
    for name, service in services.items():
        is_checked = "healthcheck" in service or service.get("build", {}).get("target") in in_image
        assert is_checked or service["restart"] == "no", name
    assert {name for name, service in services.items() if service["restart"] == "no"} == {"bucket", "deploy", "webhook"}


def test_services_wait_for_what_they_need(services):
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            ends = services[needed]["restart"] == "no"
            expected = "service_completed_successfully" if ends else "service_healthy"
            assert how == {"condition": expected}, (name, needed)
    assert {name for name, service in services.items() if "depends_on" not in service} == {"postgres", "s3"}


def test_one_worker_per_profile(services):
    profiles = {name: service["profiles"] for name, service in services.items() if "profiles" in service}
    assert profiles == {"worker": ["cpu"], "worker-gpu": ["gpu"]}
    cpu, gpu = ({**services[name], "profiles": None} for name in profiles)
    assert gpu.pop("deploy")["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert cpu == gpu


def test_a_worker_is_stopped_gently(services):
    assert services["worker"]["init"] is True  # as process 1, a worker that is told to end does not
    assert services["worker"]["stop_grace_period"] == "60s"


def test_images_of_others_are_pinned_by_digest(services):
    others = [service["image"] for service in services.values() if "build" not in service]
    assert len(others) == 2
    assert all(re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", image) for image in others)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("${A}", "1"), ("${B:-2}", "2"), ("${A:-2}${A:?no}", "11"), ("$${A}", "${A}"), ("${EMPTY:-3}", "3"), ("$A", "$A")],
)
def test_interpolation(text, expected):
    assert interpolate(text, {"A": "1", "EMPTY": ""}) == expected


# The reader of Dockerfiles


def test_lines_are_joined_and_comments_left_out():
    text = "# first\nFROM a AS b\n\nRUN one \\\n    # why\n    && two \\\n    three\nUSER 1\n"
    assert dockerfile.logical_lines(text) == [(2, "FROM a AS b"), (4, "RUN one && two three"), (8, "USER 1")]


def test_flags_are_taken_off():
    step = dockerfile.parse_instruction(3, "RUN --mount=type=cache,target=/a --mount=type=tmpfs,target=/b run --flag")
    assert step.flags == {"mount": ["type=cache,target=/a", "type=tmpfs,target=/b"]}
    assert step.value == "run --flag"


def test_a_target_needs_its_base_and_what_it_copies_from(stages):
    assert dockerfile.built_from(stages, "serve") == ["base", "build", "build-serve", "serve"]
    assert dockerfile.built_from(stages, "train") == ["base", "build", "build-train", "train"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM a AS b\nADD x y", "line 2: got the instruction ADD"),
        ("FROM a AS b\nRUN cat <<END\n", "line 2: got a heredoc"),
        ("FROM a", "line 1: got FROM a, expected FROM image AS name"),
        ("USER 1", "line 1: got USER, expected FROM first"),
        ("FROM a AS b\nRUN one \\", "line 2: the file ends within an instruction"),
    ],
)
def test_what_the_reader_does_not_know_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        dockerfile.parse(text)


def test_variables():
    env = dockerfile.assignments('A=1 PATH=/opt:$PATH C="two words"', {"PATH": "/bin"})
    assert env == {"A": "1", "PATH": "/opt:/bin", "C": "two words"}
    with pytest.raises(ValueError, match=r"got \$NONE, expected one of PATH"):
        dockerfile.substitute("$NONE", {"PATH": "/bin"})


def test_commands_are_in_their_json_form():
    assert dockerfile.command('["a", "b c"]') == ["a", "b c"]
    assert dockerfile.command('CMD ["a"]') == ["a"]
    with pytest.raises(ValueError, match="expected the JSON form"):
        dockerfile.command("a b")


# The work pools


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_template_has_a_value_for_all_it_names(kind):
    template = json.loads((ROOT / "deploy" / f"{kind}-pool.json").read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used <= set(template["variables"]["properties"])
