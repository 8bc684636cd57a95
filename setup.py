"""Package metadata. torch is declared without a pin: which build is right depends on the machine (see README)."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name="nemo_axpo",
    version="0.1.0",
    description="Agent eXplorative Policy Optimization (AXPO) for Qwen3-VL agents on Megatron",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["nemo_axpo", "nemo_axpo.*"]), "nemo_axpo.conf"],
    # The checkout keeps conf/ at the top, as NeMo users expect it; a wheel carries it inside the package.
    package_dir={"nemo_axpo.conf": "conf"},
    package_data={
        "nemo_axpo": ["**/*.html", "**/*.css", "**/*.js", "**/*.json", "**/*.yaml"],
        "nemo_axpo.conf": ["**/*.yaml"],
    },
    entry_points={"console_scripts": ["nemo-axpo = nemo_axpo.cli:main"]},
    install_requires=[
        "torch>=2.6",
        "transformers>=4.57,<6",
        "megatron-core==0.16.1",
        "nemo-aligner==0.7.0",
        "bm25s>=0.3,<0.4",
        "datasets>=4.4,<6",
        "httpx2>=2,<3",
        "hydra-core>=1.3,<1.4",
        "imagehash>=4.3",
        "omegaconf>=2.3,<2.4",
        "pydantic>=2.7,<3",
        "jsonschema>=4",
        "matplotlib>=3.8",
        # 4.9.3 of the ANTLR runtime is the one that omegaconf needs too.
        "math-verify[antlr4_9_3]==0.9.0",
        "numpy>=1.26",
        "pillow>=10.1",
        "pyarrow>=19",
        "pyseccomp>=0.1.2; sys_platform == 'linux'",
        "rich>=13",
        "safetensors>=0.4.5",
        "scipy>=1.11",
        "starlette>=0.40",
        "sympy>=1.13",
        "tensorboard>=2.16",
        "uvicorn>=0.30",
    ],
    extras_require={
        # NeMo, and what the import of NeMo-Aligner's trainers needs of NeMo's own extras; the versions that are tested
        # (requirements/aligner.txt), as newer ones of unbounded packages break the import (pangu 6).
        "nemo": [
            "nemo-toolkit==2.4.1",
            "lightning==2.5.6",
            "transformers==4.57.6",
            "huggingface-hub==0.36.2",
            "datasets==4.4.2",
            "accelerate==1.15.0",
            "boto3==1.44.5",
            "braceexpand==0.1.7",
            "cloudpickle==3.1.2",
            "einops==0.8.2",
            "fiddle==0.3.1",
            "flask==3.1.3",
            "ijson==3.6.0",
            "jieba==0.42.1",
            "nltk==3.10.4",
            "nvtx==0.2.17",
            "opencc==1.4.2",
            "pandas==3.1.1",
            "pangu==4.0.6.1",
            "rouge_score==0.1.2",
            "sacrebleu==2.6.0",
            "sentencepiece==0.2.3",
            "tiktoken==0.14.0",
            "torchmetrics==1.9.0",
            "wandb==0.31.0",
            "webdataset==1.0.2",
        ],
        "te": ["transformer-engine[pytorch]>=2.10"],
        "vllm": ["vllm>=0.32,<0.33"],
        # Releases before it pin datasets 3.1, which contradicts ours.
        "trtllm": ["tensorrt-llm>=1.4.0rc1"],
        "wandb": ["wandb>=0.17"],
        "dev": ["pytest>=8", "hypothesis>=6.100", "ruff>=0.8"],
    },
)
