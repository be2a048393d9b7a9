import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import robustcompress
from robustcompress.cli.main import run

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    lines = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != "robustcompress"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_packages_are_the_folders_on_disk() -> None:
    mapped: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
    folders = {path.parent for path in (ROOT / "robustcompress").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders if not folder.is_symlink()}
    names = {name for name in names if not name.startswith(("robustcompress.cli", "robustcompress.export"))}
    for top in ("cli", "export"):
        folders = {path.parent for path in (ROOT / top).rglob("*.py")}
        names |= {"robustcompress." + ".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(names) == sorted(PROJECT["tool"]["setuptools"]["packages"])
    for name, folder in mapped.items():
        assert (ROOT / folder).is_dir(), name


@pytest.mark.parametrize("top", ["cli", "export"])
def test_the_folders_on_top_are_linked_in_their_place(top: str) -> None:
    link = ROOT / "robustcompress" / top
    assert link.is_symlink()
    assert link.resolve() == ROOT / top


def test_every_requirement_is_pinned_within_its_bound() -> None:
    known = pins()
    for requirement in requirements():
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in known, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(known[name]), f"{requirement} does not admit {known[name]}"
    assert known["torch"] == "2.13.0"


def test_every_public_name_is_there() -> None:
    assert set(robustcompress.__all__) == {"__version__", *robustcompress._PUBLIC}
    for name in robustcompress.__all__:
        assert getattr(robustcompress, name) is not None
    assert set(robustcompress.__all__) <= set(dir(robustcompress))
    with pytest.raises(AttributeError, match="has no attribute 'Compresor'"):
        _ = robustcompress.Compresor


def seconds(code: str) -> float:
    """Return the shortest of three runs, by the process's own clock of user and system time."""
    measured = f"import resource\n{code}\nu = resource.getrusage(resource.RUSAGE_SELF)\n"
    measured += "import sys; print(u.ru_utime + u.ru_stime, file=sys.__stderr__)"
    runs = [
        subprocess.run([sys.executable, "-c", measured], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    return min(float(run.stderr.splitlines()[-1]) for run in runs)


def test_help_takes_a_quarter_of_the_import_of_torch_and_does_not_import_it() -> None:
    shown = (
        "import sys\nfrom robustcompress.cli.main import app\nsys.argv = ['robustcompress', '--help']\n"
        "try: app()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    assert seconds(shown) <= 0.25 * seconds("import torch")


def one_line_blocks(page: str) -> list[str]:
    found = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    return [block.strip() for block in found if block.strip().count("\n") == 0]


def test_the_readmes_commands_are_one_line_each_and_ci_runs_the_tests_with_the_second() -> None:
    begin = "python3 -m venv .venv && . .venv/bin/activate && "
    use = "pip install -c constraints.txt . && robustcompress prune"
    test = 'pip install -c constraints.txt ".[test]" && pytest'
    assert one_line_blocks("README.md") == [begin + use, begin + test]
    assert one_line_blocks("docs/quickstart.md")[0] == begin + use
    ci = (ROOT / ".ci" / "run").read_text().replace(" --quiet --disable-pip-version-check", "")
    assert test in ci.splitlines()


def test_the_command_of_the_readme_is_installed() -> None:
    assert PROJECT["project"]["scripts"] == {"robustcompress": "robustcompress.cli.main:run"}
    assert callable(run)


def can_build_here() -> bool:
    """Whether this environment holds what pyproject asks for to build."""
    for line in PROJECT["build-system"]["requires"]:
        requirement = Requirement(line)
        try:
            if not requirement.specifier.contains(version(requirement.name)):
                return False
        except PackageNotFoundError:
            return False
    return True


@pytest.mark.skipif(not can_build_here(), reason="building a wheel needs the setuptools of pyproject here")
def test_a_wheel_holds_one_package_and_its_data(tmp_path: Path) -> None:
    build_wheel(sys.executable, tmp_path)
    check_wheel(tmp_path)


@pytest.mark.slow
def test_a_wheel_built_in_isolation_holds_one_package_and_its_data(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "setuptools>=77"], check=True)
    build_wheel(python, tmp_path / "wheel")
    check_wheel(tmp_path / "wheel")


def build_wheel(python: str, folder: Path) -> None:
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    if not tracked:
        pytest.skip("needs a git checkout")
    for name in filter(None, tracked.split("\0")):
        path = ROOT / name
        if path.is_symlink() or not path.exists():
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(path.read_bytes())
    command = [
        python,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
    ]
    subprocess.run([*command, str(source)], check=True, capture_output=True)


def check_wheel(folder: Path) -> None:
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"robustcompress"}
    for wanted in (
        "robustcompress/py.typed",
        "robustcompress/presets/default.yaml",
        "robustcompress/report/page.html",
        "robustcompress/zoo/datasets/LICENSE.fashion-mnist",
        "robustcompress/zoo/datasets/fashion_mnist_mini.xz",
        "robustcompress/cli/main.py",
        "robustcompress/export/formats/onnx.py",
    ):
        assert wanted in names
    for top, place in (("robustcompress", ""), ("cli", "robustcompress/"), ("export", "robustcompress/")):
        for path in (ROOT / top).rglob("*"):
            if path.suffix in (".py", ".yaml", ".html"):
                assert place + path.relative_to(ROOT).as_posix() in names
