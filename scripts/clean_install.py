"""Install a wheel into a new environment and run README's first script in it, where there is no cargo and no checkout.

python scripts/clean_install.py dist/stp_rs-*.whl
"""

import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEAST_RISE = 0.3
"""Of the mean reward, from the first log to the last."""
CHECK = """
import importlib.resources, sys, stp_rs
if not stp_rs.__file__.startswith(sys.prefix):
    sys.exit(f"stp_rs came from {stp_rs.__file__}")
for name in ("py.typed", "train/report/assets/report.js", "train/report/assets/uplot.LICENSE"):
    if not importlib.resources.files(stp_rs).joinpath(name).is_file():
        sys.exit(f"the wheel has no {name}")
print("stp_rs", stp_rs.__version__, "imports from its wheel")
"""


def first_script() -> str:
    """Return README's first Python block."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return str(blocks[0])


def dependencies() -> list[str]:
    """Return the folders of this environment's packages: torch and the others are gigabytes, and are read from here."""
    site = Path(sysconfig.get_path("purelib"))
    base = [line for path in site.glob("torch_of_the_base.pth") for line in path.read_text().splitlines()]
    return [str(site), *base]


def main() -> None:
    """Make the environment, install the wheel, run the script, read its rewards."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = f"{folder}/bin/python"
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = subprocess.run([python, "-c", where], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        Path(site, "dependencies.pth").write_text("\n".join(dependencies()) + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", str(Path(sys.argv[1]).resolve())], check=True)
        bare = {"PATH": f"{folder}/bin", "HOME": folder, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        subprocess.run([python, "-c", CHECK], check=True, cwd=folder, env=bare)
        script = [python, "-c", first_script()]
        said = subprocess.run(script, check=True, cwd=folder, env=bare, stdout=subprocess.PIPE, text=True).stdout
    rewards = re.search(r"mean reward ([0-9.]+) to ([0-9.]+)", said)
    if rewards is None or float(rewards[2]) - float(rewards[1]) < LEAST_RISE:
        sys.exit(f"README's first script should show a reward that rises by {LEAST_RISE}, but printed:\n{said}")
    print("README's first script:", rewards[0])


if __name__ == "__main__":
    main()
