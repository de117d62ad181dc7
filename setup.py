"""Install with ``pip install -e .``, or ``pip install -e .[demo,test]`` for everything."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    """The version that the package states."""
    text = (HERE / "unified_se_ss" / "__init__.py").read_text(encoding="utf-8")
    return text.split('__version__ = "')[1].split('"')[0]


#: Perceptual metrics; pesq has no wheels, so it needs a C compiler.
METRICS = ["pesq>=0.0.4,<0.1", "pystoi>=0.4.1,<0.5"]
#: Aggregators of torchjd as rules; its interface moves often. `full` brings the solvers.
TORCHJD = ["torchjd[full]>=0.18,<0.19"]

#: DNSMOS; the package does not say itself what else it needs.
DNSMOS = ["speechmos>=0.0.1", "librosa>=0.10", "onnxruntime>=1.20"]

#: What copies a run elsewhere; clouds need their own beside it, such as s3fs or gcsfs.
UPLOAD = ["fsspec>=2023.1"]

#: What writes an ONNX graph and what checks it.
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"]

#: What simulates rooms for microphone arrays; compiled, with wheels for common systems.
ROOMS = ["pyroomacoustics>=0.9,<0.11"]

#: What reads measured heads from SOFA files.
SOFA = ["h5py>=3.8"]

#: What the key `tensorboard: True` of a YAML writes with.
TENSORBOARD = ["tensorboard>=2.15"]

setup(
    name="unified_se_ss",
    version=version(),
    description="Speech enhancement and separation in one network, with gradient modulation",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["unified_se_ss", "unified_se_ss.*"]),
    install_requires=(HERE / "requirements.txt").read_text(encoding="utf-8").split(),
    extras_require={
        "demo": ["espeakng-loader>=0.2.4,<0.3"],
        "metrics": METRICS,
        "test": [
            "hypothesis>=6.100",
            "mir_eval>=0.8",
            "mpmath>=1.3",
            "pystoi>=0.4.1,<0.5",
            "pytest>=8",
            *ROOMS,
            *SOFA,
            *TENSORBOARD,
            *ONNX,
            *TORCHJD,
            *UPLOAD,
        ],
        "dnsmos": DNSMOS,
        "onnx": ONNX,
        "rooms": ROOMS,
        "sofa": SOFA,
        "tensorboard": TENSORBOARD,
        "torchjd": TORCHJD,
        "upload": UPLOAD,
    },
    entry_points={"console_scripts": ["unified_se_ss = unified_se_ss.__main__:main"]},
)
