"""What a run's containers see of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.config import RunConfig, StoreConfig
from components.core.errors import InputError
from pipelines.run.containers import check_credentials, container_environment, mounts_of


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("run/simulated/screen", "screen", "store", "other store/runs/KEY", "cache"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("w.pt", "fused.csv", "truth.csv", "ca.pem", "run/simulated/truth.csv"):
        (tmp_path / name).write_text("")
    return tmp_path


def mounted(config: RunConfig, place: Path, source: str, truth: str = "", **environment: str) -> dict[str, bool]:
    found = mounts_of(config, place / "run", source, truth, environment)
    assert [one["path"] for one in found] == sorted({one["path"] for one in found})
    return {one["path"].removeprefix(f"{place}/"): one["write"] for one in found}


def test_everything_that_a_configuration_names_is_there_and_only_outputs_are_writable(place: Path, monkeypatch):
    monkeypatch.chdir(place)
    config = RunConfig.load(
        "demo",
        [
            "backbones.0.weights=w.pt",
            f"mean_teacher.fused_labels=file://{place}/fused.csv",
            f"store.bucket=file://{place}/store",
            f"loader.node_cache={place}/cache",
        ],
    )
    given = mounted(config, place, f"{place}/screen", f"{place}/truth.csv", AWS_CA_BUNDLE=f"{place}/ca.pem")
    assert given == {
        "ca.pem": False, "fused.csv": False, "screen": False, "truth.csv": False, "w.pt": False,
        "cache": True, "run": True, "store": True,
    }  # fmt: skip


def test_the_store_of_an_earlier_run_is_readable(place: Path):
    config = RunConfig.load("demo", [f"init_from=file://{place}/other%20store/runs/KEY"])
    assert mounted(config, place, f"file://{place}/screen") == {"other store": False, "run": True, "screen": False}


def test_what_lies_in_a_folder_that_is_there_is_not_mounted_again(place: Path):
    simulated = place / "run" / "simulated"
    assert mounted(RunConfig.load("demo"), place, str(simulated / "screen"), str(simulated / "truth.csv")) == {
        "run": True
    }


def test_a_writable_folder_inside_of_a_readable_one_stays_writable(place: Path):
    (place / "screen" / "store").mkdir()
    config = RunConfig.load("demo", [f"store.bucket=file://{place}/screen/store"])
    assert mounted(config, place, f"{place}/screen") == {"run": True, "screen": False, "screen/store": True}


def test_addresses_in_object_storage_need_no_mount(place: Path):
    config = RunConfig.load("demo", ["backbones.0.weights=s3://bucket/w.pt", "init_from=null"])
    assert mounted(config, place, "s3://bucket/screen") == {"run": True}


def test_a_container_gets_the_way_to_the_store_and_not_the_rest_of_the_shell(monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    own = {
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "r",
        "CELLSIGNAL_EVENTS": "/e", "OMP_NUM_THREADS": "1", "NO_PROXY": "x", "https_proxy": "y", "PYTHONSAFEPATH": "1",
    }  # fmt: skip
    shell = {
        "PATH": "/bin",
        "HOME": "/root",
        "PYTHONPATH": "/src",
        "GITHUB_TOKEN": "t",
        "LD_PRELOAD": "l",
        "AWS_PROFILE": "p",
    }
    assert container_environment({**own, **shell, "SSL_CERT_FILE": "ca.pem"}) == {
        **own,
        "SSL_CERT_FILE": f"{tmp_path}/ca.pem",
    }


def test_credentials_in_files_are_refused_where_only_variables_get_into_a_container():
    bucket = StoreConfig(bucket="s3://lab/team")
    role = {"AWS_ROLE_ARN": "r", "AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}
    for variables in ({"AWS_PROFILE": "p"}, {"AWS_SHARED_CREDENTIALS_FILE": "/c"}, role):
        check_credentials(StoreConfig(), variables)  # a folder needs none
        with pytest.raises(
            InputError, match="--runner docker: containers see no files of credentials; set AWS_ACCESS_KEY_ID"
        ):
            check_credentials(bucket, variables)
    for variables in ({}, {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_PROFILE": "p"}):
        check_credentials(bucket, variables)
    check_credentials(bucket, {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials"})
