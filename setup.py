"""The packages of tf_unravel and the files that come with them; pyproject.toml says everything else."""

from setuptools import find_packages, setup

setup(
    # The top-level folder gin/ holds gin files only; installed, it is tf_unravel/gin_files.
    packages=[*find_packages(include=["tf_unravel", "tf_unravel.*"]), "tf_unravel.gin_files"],
    package_dir={"tf_unravel.gin_files": "gin"},
    package_data={
        "tf_unravel.gin_files": ["*/*.gin"],
        "tf_unravel": ["py.typed", "trained/README.md", "trained/*/*.*", "trained/*/checkpoints/best.npz"],
        "tf_unravel.data.sources": ["splits/*.txt"],
        "tf_unravel.deployment.serving.page": ["*.html", "*.css", "*.js", "*.svg"],
    },
)
