"""Install with ``pip install -e .``, or ``pip install -e .[demo,test]`` for everything.

The ranges are as wide as they were tested (``make test-lowest``, ``make test-newest``). Three
packages have an upper bound, since this project builds on their insides: SpeechBrain, whose
Brain is extended; torchjd, whose interface moves often; and mir_eval, which loses
``mir_eval.separation`` in 0.9. What ``make`` installs is pinned in requirements-lock.txt.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    """The version that the package states."""
    text = (HERE / "unified_se_ss" / "__init__.py").read_text(encoding="utf-8")
    return text.split('__version__ = "')[1].split('"')[0]


#: What is heavy or rare, and so is not installed unless it is asked for.
EXTRAS = {
    # Voices of the demos: espeak-ng, which is GPL-3.0-or-later.
    "demo": ["espeakng-loader>=0.2.4"],
    # Perceptual metrics; pesq has no wheels, so it needs a C compiler.
    "metrics": ["pesq>=0.0.4", "pystoi>=0.4.1"],
    # DNSMOS; the package does not say itself what else it needs.
    "dnsmos": ["speechmos>=0.0.1", "librosa>=0.10", "onnxruntime>=1.20"],
    # What writes an ONNX graph and what checks it. torch 2.8 writes some of a wrong shape,
    # which is noticed and refused; 2.11 does not.
    "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.7"],
    # What reads measured heads from SOFA files.
    "sofa": ["h5py>=3.10"],
    # What the key `tensorboard: True` of a YAML writes with.
    "tensorboard": ["tensorboard>=2.15"],
    # Aggregators of torchjd as rules, with their solvers. ECOS, NashMTL's, has wheels only
    # here; elsewhere `pip install ecos` needs a C compiler.
    "torchjd": [
        "torchjd[cagrad,fairgrad,quadprog-projector]>=0.18,<0.19",
        "ecos>=2.0.14; sys_platform == 'linux' and platform_machine == 'x86_64' "
        "and python_version < '3.13'",
    ],
}
EXTRAS["test"] = [
    "hypothesis>=6.100",
    "mpmath>=1.3",
    "pystoi>=0.4.1",
    "pytest>=8",
    "pytest-xdist>=3.6",
    *(
        requirement
        for extra in ("onnx", "sofa", "tensorboard", "torchjd")
        for requirement in EXTRAS[extra]
    ),
]
# What looks at the code, and what pins and builds.
EXTRAS["dev"] = ["build>=1.2", "mypy>=1.15", "ruff>=0.9", "setuptools>=77", "uv>=0.6"]

setup(
    name="unified_se_ss",
    version=version(),
    description="Speech enhancement and separation in one network, with gradient modulation",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["unified_se_ss", "unified_se_ss.*"]),
    package_data={"unified_se_ss": ["py.typed", "**/*.jinja"]},
    install_requires=(HERE / "requirements.txt").read_text(encoding="utf-8").split(),
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["unified_se_ss = unified_se_ss.__main__:main"]},
)
