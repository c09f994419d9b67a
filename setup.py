"""Packaging: `pip install .`, with extras as in `pip install -e ".[dev]"`."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).resolve().parent


def read_version() -> str:
    """`__version__` of the package, from its text: no import before the install."""
    text = (ROOT / "yt8m_distill" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if found is None:
        raise ValueError('yt8m_distill/__init__.py has no line __version__ = "...".')
    return found.group(1)


setuptools.setup(
    name="yt8m-distill",
    version=read_version(),
    description=(
        "Distils a video classifier that sees every frame into one that sees a "
        "tenth of them, on YouTube-8M features with TensorFlow."
    ),
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The yt8m_distill contributors",
    project_urls={
        "Paper": "https://openaccess.thecvf.com/content_CVPR_2019/html/"
        "Bhardwaj_Efficient_Video_Classification_Using_Fewer_Frames_CVPR_2019_paper.html",
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=[
        "video classification",
        "knowledge distillation",
        "YouTube-8M",
        "AudioSet",
        "TensorFlow",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=[
        *setuptools.find_packages(include=["yt8m_distill", "yt8m_distill.*"]),
        "yt8m_distill.flagfiles",
    ],
    # The flagfiles, for --flagfile=yt8m:NAME.
    package_dir={"yt8m_distill.flagfiles": "flags"},
    package_data={"yt8m_distill.flagfiles": ["*.flags"]},
    python_requires=">=3.10,<3.14",
    install_requires=[
        # Keras comes with TensorFlow, in the version that fits it.
        "tensorflow>=2.15.1,<2.22",
        "numpy>=1.23.5,<3",
        "absl-py>=1.4,<3",
        "tensorboard>=2.15,<2.22",
        "tqdm>=4.64,<5",
        "filelock>=3.12,<4",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.15.1,<2.22"],
        # The last pair that works together; Python 3.10 or 3.11. Its TensorBoard
        # needs pkg_resources, which later setuptools no longer has.
        "addons": [
            "tensorflow==2.15.1",
            "tensorflow-addons==0.23.0",
            "setuptools<81",
        ],
        "beam": ["apache-beam>=2.70,<3"],  # tools/beam_run.py
        "edge": ["ai-edge-litert", "tf2onnx", "onnxruntime"],
        "serving": ["tensorflow-serving-api"],
        "video": ["av"],  # yt8m-extract, yt8m-tag
        "test": ["pytest", "pytest-xdist"],
        "dev": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "scikit-learn",
            "ruff",
            "import-linter",
            "pandas",
            "tabulate",
            "jinja2",
            "matplotlib",
        ],
    },
    entry_points={
        "console_scripts": [
            "yt8m-train=yt8m_distill.train:run",
            "yt8m-eval=yt8m_distill.eval:run",
            "yt8m-inference=yt8m_distill.inference:run",
            "yt8m-export=yt8m_distill.export_model:run",
            "yt8m-calibrate=yt8m_distill.calibrate:run",
            "yt8m-inspect=yt8m_distill.inspect_records:run",
            "yt8m-index=yt8m_distill.index_records:run",
            "yt8m-thin=yt8m_distill.thin_records:run",
            "yt8m-merge=yt8m_distill.merge_predictions:run",
            "yt8m-classify=yt8m_distill.classify_records:run",
            "yt8m-convert=yt8m_distill.convert_records:run",
            "yt8m-extract=yt8m_distill.extract_videos:run",
            "yt8m-tag=yt8m_distill.tag_videos:run",
        ]
    },
)
