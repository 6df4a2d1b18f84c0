"""The files of examples/cluster, as far as a machine without a cluster can check them: scripts run with stand-ins for
torchrun and Slurm, manifests are read, and torchrun's own parser reads the commands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from cohort.config import GRPOConfig, read_run
from helpers import ROOT

CLUSTER = ROOT / "examples" / "cluster"
SCRIPTS = {
    "one_machine.sh": ["max_steps=50"],
    "two_machines.sh": ["first.example", "output_dir=/shared/run"],
    "slurm.sbatch": ["output_dir=/shared/run"],
}
SLURM = {
    "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "17",
}  # fmt: skip
STAND_INS = {
    "torchrun": 'printf "%s\\n" "$@"',
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    "scontrol": '[[ "$1 $2 $3" == "show hostnames node[1-2]" ]] && printf "node1\\nnode2\\n"',
}


def launched(arguments: list[str]) -> Any:
    """What torchrun reads from the arguments. Its configuration must be one that `cohort train` accepts."""
    parsed = get_args_parser().parse_args(arguments)
    assert parsed.module and parsed.training_script == "cohort"
    command, path, *overrides = parsed.training_script_args
    assert command == "train" and Path(path).name == "run.yaml"
    _, config = read_run(CLUSTER / "run.yaml", overrides)
    assert isinstance(config, GRPOConfig)
    assert [f"{key}={getattr(config, key)}" for key, _, _ in (each.partition("=") for each in overrides)] == overrides
    return parsed


def script_arguments(name: str, folder: Path, environment: dict[str, str]) -> list[str]:
    """What the script gives torchrun."""
    for program, body in STAND_INS.items():
        (folder / program).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / program).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment}
    command = ["bash", str(CLUSTER / name), *SCRIPTS[name]]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_the_script(name: str) -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / name)], check=True)


def test_one_machine(tmp_path: Path) -> None:
    arguments = script_arguments("one_machine.sh", tmp_path, {})
    assert launched(arguments).standalone and launched(arguments).nproc_per_node == "gpu"
    assert launched(script_arguments("one_machine.sh", tmp_path, {"GPUS": "4"})).nproc_per_node == "4"


def test_two_machines(tmp_path: Path) -> None:
    found = launched(script_arguments("two_machines.sh", tmp_path, {"GPUS": "8"}))
    assert (found.nnodes, found.nproc_per_node, found.rdzv_backend) == ("2", "8", "c10d")
    assert found.rdzv_endpoint == "first.example:29500"


def test_two_machines_ask_for_the_first_ones_address() -> None:
    done = subprocess.run(["bash", str(CLUSTER / "two_machines.sh")], capture_output=True, text=True)
    assert done.returncode and "give the address of the first machine" in done.stderr


def test_slurm(tmp_path: Path) -> None:
    found = launched(script_arguments("slurm.sbatch", tmp_path, SLURM))
    assert (found.nnodes, found.nproc_per_node, found.rdzv_id) == ("2", "8", "17")
    assert found.rdzv_endpoint == "node1:29500"
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", (CLUSTER / "slurm.sbatch").read_text(), re.MULTILINE))
    assert options["ntasks-per-node"] == "1"  # one torchrun on each node
    assert (options["nodes"], options["gpus-per-node"]) == ("2", "8")


def manifests(name: str) -> list[Any]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


def pod_launched(pod: Any, variables: dict[str, str]) -> Any:
    """What torchrun reads in the pod, whose volumes must be those that it mounts."""
    (container,) = pod["containers"]
    program, *arguments = container["command"]
    assert program == "torchrun" and container["image"].startswith("registry.example/")
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    found = launched([re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], each) for each in arguments])
    assert found.training_script_args[1] == f"{mounts['run']}/run.yaml"
    assert found.training_script_args[2].startswith(f"output_dir={mounts['shared']}/")
    assert int(found.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    return found


def test_pytorch_job() -> None:
    (job,) = manifests("pytorchjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    for rank, kind in enumerate(("Master", "Worker")):
        variables = {"RANK": str(rank), "MASTER_ADDR": "cohort-master-0", "MASTER_PORT": "23456"}
        found = pod_launched(replicas[kind]["template"]["spec"], variables)
        assert (found.node_rank, found.master_addr, found.master_port) == (rank, "cohort-master-0", 23456)
        assert int(found.nnodes) == sum(each["replicas"] for each in replicas.values())


def test_indexed_job() -> None:
    service, job = manifests("indexed_job.yaml")
    spec, name = job["spec"], job["metadata"]["name"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": name}
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    for index in range(spec["completions"]):
        found = pod_launched(pod, {"JOB_COMPLETION_INDEX": str(index)})
        assert (int(found.nnodes), found.node_rank) == (spec["completions"], index)
        assert found.master_addr == f"{name}-0.{pod['subdomain']}"


def test_the_run_has_whole_problems_for_each_gpu() -> None:
    _, config = read_run(CLUSTER / "run.yaml")
    assert isinstance(config, GRPOConfig)
    assert divmod(config.per_device_train_batch_size, config.num_generations) == (8, 0)
