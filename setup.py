"""Installs tf_unravel, its command and its gin files."""

from setuptools import find_packages, setup

BENCHMARK = ["torch>=2.2"]
SERVE = ["starlette>=0.40", "uvicorn>=0.30"]
TEST = [*SERVE, "pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "cvxpy>=1.5"]
DOCS = [
    "properdocs>=1.6.7",
    "properdocs-theme-readthedocs>=1.6.5",
    "mkdocstrings-python>=2.0",
    "pymdown-extensions<13; python_version < '3.11'",  # the last mkdocstrings for 3.10 does not know 13
]
FUZZ = ["atheris>=2.3"]
LINT = ["ruff>=0.6", "mypy>=1.15", *DOCS]

setup(
    name="tf-unravel",
    version="0.1.0",
    description="Few-shot learning for TensorFlow and Keras 3: train, measure and understand feature extractors",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # The top-level folder gin/ holds gin files only; installed, it is tf_unravel/gin_files.
    packages=[*find_packages(include=["tf_unravel", "tf_unravel.*"]), "tf_unravel.gin_files"],
    package_dir={"tf_unravel.gin_files": "gin"},
    package_data={
        "tf_unravel.gin_files": ["*/*.gin"],
        "tf_unravel": ["py.typed", "trained/README.md", "trained/*/*.*", "trained/*/checkpoints/best.npz"],
        "tf_unravel.data.sources": ["splits/*.txt"],
    },
    install_requires=[
        "gin-config>=0.5",
        "keras>=3.6",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pillow>=10.3",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "tensorboard>=2.18",
        "tensorflow>=2.18",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": TEST,
        "lint": LINT,
        "fuzz": FUZZ,
        "docs": DOCS,
        "gpu": ["tensorflow[and-cuda]>=2.18"],
        "benchmark": BENCHMARK,
        "serve": SERVE,
    },
    entry_points={"console_scripts": ["tf-unravel = tf_unravel.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
