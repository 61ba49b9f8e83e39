"""The parts of the project that are not Python: layout, pins, cluster files, documents."""

import dataclasses
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private import util as autoscaler
from ray.autoscaler._private.kuberay import autoscaling_config

from raysers.commands import COMMANDS, find
from raysers.commands.fusion import FUSE
from raysers.engine.placement import choose_placement
from tests.places import REPO

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
DOCUMENTS = [
    *(REPO / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((REPO / "docs").glob("*.md")),
]
COMMANDS_IN = [
    *DOCUMENTS, REPO / "docs/rayjob.yaml", REPO / "cluster.yaml", REPO / "Makefile",
    *sorted((REPO / "raysers/commands").glob("[a-z]*.py")),
]  # fmt: skip
TOP_LEVEL = {
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "Dockerfile", "LICENSE", "Makefile",
    "README.md", "cluster.yaml", "constraints.txt", "docs", "jobs", "mkdocs.yml", "pyproject.toml",
    "raysers", "tests",
}  # fmt: skip


def tracked_or_new() -> list[Path]:
    """Files git would have in the next commit; all files where git is absent."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [REPO / name for name in listed.stdout.split("\0") if name and (REPO / name).is_file()]


def flags_of(job: str) -> set[str]:
    """Every flag of a job, from its config dataclasses, wherever they stand."""
    commands = [command for command, _ in FUSE.values()] if job == "fuse" else [find(job)]
    names = {field.name for command in commands for field in dataclasses.fields(command.flags)}
    return {
        *("--help", "--help-all", "--version", "--config", "--requester-pays"),
        *(("--recipe",) if job in ("train", "fuse") else ()),
        *("--" + name.replace("_", "-") for name in names),
    }


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(job, flags) of every `jobs/<job>.py` and `raysers <job>` command, across folded lines."""
    joined = re.sub(r"\\\n\s*", " ", text)
    joined = re.sub(r"\n\s*(?=--\w)", " ", joined)
    joined = re.sub(r"'[^'\n]*'", "TEXT", joined)  # another program's command
    names = "|".join(COMMANDS)
    found = re.findall(rf"(?:jobs/(\w+)\.py|\braysers ({names})\b)([^\n`|]*)", joined)
    return [
        (script or name, re.findall(r"(?<=\s)--[a-z][a-z-]*", rest)) for script, name, rest in found
    ]


def test_top_level_is_small():
    names = {path.relative_to(REPO).parts[0] for path in tracked_or_new()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_modules_are_short():
    long = {
        str(path.relative_to(REPO)): lines
        for path in tracked_or_new()
        if path.suffix == ".py"
        and path.relative_to(REPO).parts[0] in ("raysers", "jobs")
        and (lines := len(path.read_text().splitlines())) > 400
    }
    assert long == {}


def test_every_direct_dependency_is_pinned_within_its_range():
    lines = (REPO / "constraints.txt").read_text().splitlines()
    pins = {
        canonicalize_name(name): version
        for name, version in (line.split("==") for line in lines if not line.startswith("#"))
    }
    assert not [version for version in pins.values() if "+" in version]
    wanted = [
        Requirement(text)
        for text in sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
    ]
    others = [r for r in wanted if r.name != PROJECT["name"]]
    off = [r for r in others if pins.get(canonicalize_name(r.name)) not in r.specifier]
    assert off == []


def test_the_extra_all_is_every_extra_without_the_tools_of_developers():
    extras = PROJECT["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.extras == set(extras) - {"all", "dev", "docs"}


def test_importing_the_package_loads_neither_torch_nor_ray():
    code = (
        "import sys, raysers, raysers.types, raysers.errors\n"
        "heavy = {'torch', 'ray', 'transformers', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_data_and_audio_load_neither_torch_nor_ray():
    code = (
        "import importlib, pkgutil, sys, raysers.audio, raysers.data\n"
        "for package in (raysers.audio, raysers.data):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "heavy = {'torch', 'ray', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cluster_yaml_satisfies_rays_own_schema(monkeypatch):
    monkeypatch.chdir(REPO)
    config = yaml.safe_load((REPO / "cluster.yaml").read_text())
    prepared = autoscaler.prepare_config(config)
    autoscaler.validate_config(prepared)
    types = prepared["available_node_types"]
    assert types[prepared["head_node_type"]]["resources"] == {"CPU": 0}
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    # Ray Data asks for a node of every group that may still grow
    grow = {name: t["max_workers"] for name, t in types.items() if t["max_workers"]}
    assert grow == {"gpu": prepared["max_workers"]}
    assert types["gpu"]["min_workers"] < types["gpu"]["max_workers"]
    # what is mounted must be there and must be enough to install the package
    local = [Path(path) for path in prepared["file_mounts"].values() if not path.startswith("~")]
    assert [path for path in local if not path.exists()] == []
    assert {"raysers", "jobs", "pyproject.toml", "constraints.txt", PROJECT["readme"]} <= {
        str(path) for path in local
    }
    assert set(PROJECT["license-files"]) <= {str(path) for path in local}


def test_cluster_yaml_check_can_fail(monkeypatch):
    monkeypatch.chdir(REPO)
    config = yaml.safe_load((REPO / "cluster.yaml").read_text()) | {"min_worker": 1}
    with pytest.raises(Exception, match="min_worker"):
        autoscaler.validate_config(autoscaler.prepare_config(config))


def test_rayjob_is_complete_and_of_the_pinned_ray():
    job = yaml.safe_load((REPO / "docs/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["submissionMode"] == "SidecarMode"
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["backoffLimit"] > 0
    cluster = spec["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}\n" in (REPO / "constraints.txt").read_text()
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["template"]["spec"]["restartPolicy"] == "Never"
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    assert cluster["enableInTreeAutoscaling"] is True
    # as Ray's autoscaler reads it; a GPU job asks for a GPU and a CPU, and decodes on the others
    resource = {"metadata": {"name": "annotate", "namespace": "default"}, "spec": cluster}
    read = autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)
    assert read["idle_timeout_minutes"] == 5
    assert read["available_node_types"]["headgroup"]["resources"]["CPU"] == 0
    worker = read["available_node_types"]["gpu"]
    assert (worker["min_workers"], worker["max_workers"]) == (1, 4)
    assert choose_placement(0, [worker["resources"]]).workers == worker["resources"]["GPU"] == 1
    templates = [head["template"], group["template"]]
    images = {c["image"] for t in templates for c in t["spec"]["containers"]}
    assert len(images) == 1
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert shlex.split(spec["entrypoint"])[0] == "python"


@pytest.mark.parametrize("path", COMMANDS_IN, ids=lambda path: path.name)
def test_commands_in_documents_use_flags_that_exist(path):
    unknown = [
        f"jobs/{job}.py {flag}"
        for job, flags in commands(path.read_text())
        for flag in flags
        if flag not in flags_of(job)
    ]
    assert unknown == []


def test_commands_are_found_where_they_are():
    (command,) = commands((REPO / "docs/rayjob.yaml").read_text())
    assert command[0] == "annotate"
    assert {"--input", "--output", "--model"} <= set(command[1])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_documents_resolve(path):
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


def test_licence_is_apache_and_ours():
    text = (REPO / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "The raysers authors" in text


def test_no_unfinished_work_is_left_in_the_code():
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError")
    here = Path(__file__).resolve()
    left = [
        f"{path.relative_to(REPO)}: {mark.group()}"
        for path in tracked_or_new()
        if path.suffix in (".py", ".md", ".yaml", ".toml") and path != here
        for mark in marks.finditer(path.read_text())
    ]
    assert left == []


def test_files_for_clusters_install_what_every_job_needs():
    extras = PROJECT["optional-dependencies"]
    sources = "\n".join(path.read_text() for path in (REPO / "raysers").rglob("*.py"))
    needed = set(re.findall(r"raysers\[([a-z]+)\]", sources))
    (everything,) = map(Requirement, extras["all"])
    assert needed
    assert needed <= everything.extras
    setup = yaml.safe_load((REPO / "cluster.yaml").read_text())["setup_commands"]
    image = (REPO / "Dockerfile").read_text()
    for commands_ in ("\n".join(setup), image):
        assert re.findall(r"-e [\"']\S*\[([\w,]+)\]", commands_) == ["all"]
    job = yaml.safe_load((REPO / "docs/rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    (container,) = job["headGroupSpec"]["template"]["spec"]["containers"]
    # the page on clusters says how to build the image that the job names
    assert f"docker build -t {container['image']} " in (REPO / "docs/clusters.md").read_text()
    assert "/opt/raysers/jobs/annotate.py" in (REPO / "docs/rayjob.yaml").read_text()
    assert "WORKDIR /opt/raysers" in image


def test_dockerfile_copies_and_installs_what_is_there():
    text = re.sub(r"\\\n\s*", " ", (REPO / "Dockerfile").read_text())
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] != "#"]
    kinds = [kind for kind, _ in steps]
    assert kinds[0] == "FROM"
    assert set(kinds) <= {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}
    copied = [shlex.split(rest)[:-1] for kind, rest in steps if kind == "COPY"]
    assert [name for names in copied for name in names if not (REPO / name).exists()] == []
    wheel = {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "raysers"}
    assert wheel <= {name for names in copied for name in names}
    for run in (rest for kind, rest in steps if kind == "RUN"):
        subprocess.run(["sh", "-n", "-c", run], check=True)
    assert "torch==" in (REPO / "constraints.txt").read_text()


def test_readme_is_short_and_documents_are_complete():
    assert (REPO / "README.md").stat().st_size <= 9_000
    pages = {path.name for path in (REPO / "docs").glob("*.md")}
    wanted = (
        "install annotate schema cli api train evaluate robustness words tune reproduce report "
        "models guarantees architecture benchmarks clusters faq"
    )
    assert {f"{name}.md" for name in wanted.split()} <= pages
    listed = set(re.findall(r": ([a-z]+\.md)$", (REPO / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == pages


def test_the_citation_can_be_read():
    cited = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert cited["version"] == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    assert {"title", "message", "authors", "preferred-citation"} <= set(cited)
