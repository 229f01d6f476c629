"""The built images: their user, their content, and what they must not contain."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from components.image import VERSION
from pipelines.images.code_version import sources_digest, tag_of
from tests.container_engine import engine_or_skip, images_or_skip

pytestmark = pytest.mark.docker
TARGETS = ("cpu", "gpu")
RESTRICTED: dict[str, Any] = {
    "read_only": True,
    "tmpfs": {"/tmp": ""},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "network_disabled": True,
    "remove": True,
}


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    return images_or_skip()


def run(image: str, *command: str, **more: Any) -> str:
    return engine_or_skip().containers.run(image, list(command), **{**RESTRICTED, **more}).decode()


@pytest.mark.parametrize("target", TARGETS)
def test_the_command_line_runs_as_any_user_on_a_read_only_root(images, target: str):
    assert engine_or_skip().images.get(images[target]).attrs["Config"]["User"] == "10001:10001"
    assert run(images[target], "id", "-u").strip() == "10001"
    for user in ("10001:10001", "4711:4712"):
        output = run(
            images[target],
            "python3",
            "-c",
            "import matplotlib.pyplot, getpass, tempfile, components.report.step, components.normalize.step, kfp.dsl\n"
            "matplotlib.pyplot.figure().savefig(tempfile.mkdtemp() + '/a.png'); print(getpass.getuser())",
            user=user,
        )
        assert output.splitlines()[-1] == "cellsignal"
    assert run(images[target], "cellsignal", "--version") == f"cellsignal {VERSION}\n"


def test_cpu_has_no_torch_and_every_step_of_its_own(images):
    program = (
        "from importlib.util import find_spec\n"
        "print([n for n in ('torch', 'timm', 'triton', 'nvidia', 'pip', 'docker') if find_spec(n)])\n"
        "import components.assign.step, components.ensemble.step, components.simulate.step"
    )
    assert run(images["cpu"], "python3", "-c", program) == "[]\n"


def test_gpu_has_what_training_needs_at_the_tested_versions(images):
    program = (
        "import components.pretrain.step, components.finetune.step, components.pseudo_label.step, components.infer.step\n"
        "from importlib.util import find_spec\n"
        "from components.core.learning.step_settings import library_versions\n"
        "print(library_versions(), find_spec('pip'))"
    )
    from components.core.learning.step_settings import library_versions

    assert run(images["gpu"], "python3", "-c", program) == f"{library_versions()} None\n"


@pytest.mark.parametrize("target", TARGETS)
def test_labels_have_version_commit_and_sources(images, target: str):
    image = engine_or_skip().images.get(images[target])
    labels = image.labels
    assert labels["org.opencontainers.image.version"] == VERSION
    revision = labels["org.opencontainers.image.revision"]
    assert re.fullmatch(r"[0-9a-f]{12}(\+changes)?", revision)
    assert f"cellsignal-{target}:{tag_of(revision)}" in image.tags
    assert labels["cellsignal.sources"] == sources_digest()
    program = "from pipelines.images.code_version import sources_digest; print(sources_digest())"
    assert run(images[target], "python3", "-c", program).strip() == sources_digest()


@pytest.mark.parametrize("target", TARGETS)
def test_neither_settings_of_pip_nor_a_credential_is_in_an_image_or_its_history(images, target: str):
    """The build uses a pip.conf and certificates (.ci/docker); file names, history and configuration are searched."""
    client = engine_or_skip()
    image = client.images.get(images[target])
    metadata = json.dumps([image.history(), image.attrs["Config"]])
    for word in ("pip.conf", "ca.crt", "PIP_", "index-url", "find-links", "AWS_", "127.0.0.1", "TOKEN", "SECRET"):
        assert word not in metadata, word
    left = run(
        images[target],
        "find", "/", "-xdev", "(", "-name", "pip.conf", "-o", "-name", "ca.crt", "-o", "-name", ".netrc",
        "-o", "-name", "*.lock", "-path", "/build/*", "-o", "-name", ".git", "-o", "-name", "pip.ini", ")",
        user="0:0",
        cap_add=["DAC_READ_SEARCH"],
    )  # fmt: skip
    assert left == ""


def test_both_images_share_their_layers_up_to_torch(images):
    cpu, gpu = (engine_or_skip().images.get(images[target]).attrs["RootFS"]["Layers"] for target in TARGETS)
    shared = [one for one, other in zip(cpu, gpu, strict=False) if one == other]
    # cpu is base, environment, dependencies, package; gpu has torch before the package.
    assert len(shared) == len(cpu) - 1
    assert cpu[-1] == gpu[-1], "the package is the last layer, so that a change of source sends nothing else"


def test_the_package_is_read_only(images):
    program = "import os, components; print(os.access(components.__path__[0], os.W_OK), os.access('/opt/cellsignal', os.W_OK))"
    assert run(images["cpu"], "python3", "-c", program, read_only=False) == "False False\n"
