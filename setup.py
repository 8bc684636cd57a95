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
        # What the import of NeMo-Aligner's trainers needs of NeMo's own extras, which pin other versions than ours.
        "nemo": [
            "nemo-toolkit==2.4.1",
            "lightning<2.6",
            "transformers>=4.57,<5",
            "huggingface-hub<1",
            *(
                "accelerate",
                "boto3",
                "braceexpand",
                "cloudpickle",
                "einops",
                "fiddle",
                "flask",
                "ijson",
                "jieba",
                "nltk",
            ),
            *("nvtx", "opencc", "pandas", "pangu", "rouge_score", "sacrebleu", "sentencepiece", "tiktoken"),
            *("torchmetrics", "wandb", "webdataset"),
        ],
        "te": ["transformer-engine[pytorch]>=2.10"],
        "vllm": ["vllm>=0.32,<0.33"],
        # Releases before it pin datasets 3.1, which contradicts ours.
        "trtllm": ["tensorrt-llm>=1.4.0rc1"],
        "wandb": ["wandb>=0.17"],
        "dev": ["pytest>=8", "hypothesis>=6.100", "ruff>=0.8"],
    },
)
