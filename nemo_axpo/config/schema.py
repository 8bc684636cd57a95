"""The schema of a run, and the only home of defaults.

Defaults are the paper's where the paper has one (N, K, r, clips, KL, turns) and else those of a real model; a recipe under
``conf/`` states what it changes. Every section is frozen, and a key no section has is an error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Base of every section: frozen, no unknown key, no NaN, field docs kept for error messages."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelConfig(Section):
    """Where the policy's weights come from."""

    path: str | None = None
    """HF checkpoint directory; null: the tiny model of the embedded world with random weights (sft only)."""


class DataFileConfig(Section):
    """Files of one layout, and what is taken of them."""

    path: str
    """File, directory or pattern of files (.parquet, .jsonl, .json), or a hub id."""
    reader: str = "schema"
    """Their layout: schema, virl39k, fvqa, pyvision, mmfinereason, mmfinereason_hard, that of a benchmark (docs/evaluation.md),
    or ``path/to/file.py:function``."""
    subset: str | None = None
    """Configuration of a hub data set; null: its only one."""
    split: str = "train"
    """Of a hub data set."""
    source: str | None = None
    """Name of the data source, which chooses the verifier; null: the reader's, or the rows' own."""
    image_root: str | None = None
    """Directory that relative image paths start from; null: the file's."""
    keep: str | None = None
    """JSONL file of ids (``nemo-axpo filter`` writes one): other questions are left out."""
    max_questions: Count | None = None
    """So many of them, drawn by id; null: all."""


class DataConfig(Section):
    """Which questions are asked."""

    name: Literal["world", "world_specks", "files"] = "world"
    """``world`` and ``world_specks`` are the embedded world's two tasks; ``files``: the questions of data files."""
    num_questions_per_step: Count = 16
    """B: questions of one step of the whole job."""
    files: tuple[DataFileConfig, ...] = ()
    """What training, distillation and filtering ask."""
    eval_files: tuple[DataFileConfig, ...] = ()
    """What evaluations during training ask; none: the share ``held_out`` of ``files``."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the questions that training never asks, chosen by id, where there are no ``eval_files``."""
    shuffle: bool = True
    """Every epoch has an order of its own; false: the files' order."""
    streaming: bool = False
    """Rows are read as they are asked for, not converted and checked beforehand; needs ``eval_files``."""
    shuffle_buffer: Count = 1_000
    """Questions among which a streamed one is drawn."""
    cache_dir: str | None = None
    """Where ``datasets`` keeps converted files; null: its own place."""


class WorldConfig(Section):
    """The embedded world: how much each view tells, and what its warm start teaches."""

    dots: Probability = 0.5
    """Contrast of the dots, visible only when zoomed in, as a share of the colour's distance from gray."""
    tint: Probability = 0.25
    """Contrast of the lit swatch's colour in the light on the whole picture; raises the direct accuracy."""
    daylight: NonNegative = 40.0
    """Standard deviation of the daylight's colour, in 0-255 levels per channel; lowers the direct accuracy."""
    aim_rate: Probability = 0.05
    """Share of the warm start's tool calls that aim at the right tile; raises the tool accuracy."""
    tool_rate: Probability = 0.275
    """Share of the warm start's answers that use the tool."""


class GrpoConfig(Section):
    """Group-relative policy optimisation."""

    name: Literal["grpo"] = "grpo"
    num_rollouts: Annotated[int, Field(ge=2)] = 8
    """N: ordinary rollouts per question."""


class AxpoConfig(Section):
    """GRPO plus resampling of tool calls where every tool-using rollout is wrong."""

    name: Literal["axpo"] = "axpo"
    num_rollouts: Annotated[int, Field(ge=2)] = 8
    """N: ordinary rollouts per question."""
    num_continuations: Annotated[int, Field(ge=2)] = 4
    """K: continuations per selected thinking prefix."""
    resample_ratio: Positive = 0.25
    """r: extra continuations a step, as a share of B·N."""


AlgorithmConfig = Annotated[GrpoConfig | AxpoConfig, Field(discriminator="name")]


class LossConfig(Section):
    """Clipped surrogate and KL (Eq. 5-6)."""

    clip_low: Probability = 0.2
    """The ratio is clipped below 1 - clip_low."""
    clip_high: NonNegative = 0.4
    """The ratio is clipped above 1 + clip_high."""
    kl_coef: NonNegative = 1e-3
    """β: weight of the KL to the fixed reference policy; 0 turns it off."""
    aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """Mean over the step's unmasked tokens, or over rows with the constant 1/(B·N)."""
    mismatch: Literal["none", "truncated_importance_sampling", "sequence_masking"] = "none"
    """Weights of the surrogate where engine and trainer give a token different probabilities."""
    importance_cap: Annotated[float, Field(ge=1)] = 2.0
    """Truncated importance sampling: largest weight of a token."""
    row_limit: Positive = 0.01
    """Sequence masking: largest mean difference of a row that is kept, in nats per token."""


class OptimizerConfig(Section):
    """AdamW with a constant learning rate after a linear warm-up."""

    lr: Positive = 2e-6
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.01
    clip_grad: NonNegative = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps over which the learning rate rises linearly from 0."""


class Fp8Config(Section):
    """FP8 products in the decoder layers, by Transformer Engine; weights, vision tower and output layer stay in bf16."""

    recipe: Literal["delayed", "tensorwise", "blockwise"] | None = None
    """How scales are found: from earlier maxima, from the tensor itself, per block of 128; null: no FP8."""
    format: Literal["e4m3", "hybrid"] = "hybrid"
    """e4m3 everywhere, or hybrid: e4m3 forward and e5m2 for gradients."""
    margin: Annotated[int, Field(ge=0)] = 0
    """Scales are smaller by 2^margin; delayed only."""
    amax_history_len: Count = 1024
    """Earlier maxima that are kept; delayed only."""
    amax_compute_algo: Literal["max", "most_recent"] = "max"
    """Which of the kept maxima counts; delayed only."""
    wgrad: bool = True
    """Gradients of weights are FP8 products too; delayed only."""
    first_last_layers_bf16: bool = False
    """The first and last decoder layers compute in bf16; not with delayed."""
    num_layers_at_start_in_bf16: Annotated[int, Field(ge=0)] = 1
    num_layers_at_end_in_bf16: Annotated[int, Field(ge=0)] = 1


class ActorConfig(Section):
    """How the policy is trained."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    transformer_impl: Literal["auto", "local", "transformer_engine"] = "auto"
    """Decoder layers on plain torch or on Transformer Engine; auto: the latter where installed, for bf16 on CUDA."""
    fp8: Fp8Config = Fp8Config()
    micro_batch_tokens: Count = 32_768
    """Tokens of one forward and backward pass: rows times longest row if padded, tokens after sharing if thd."""
    packing: Literal["auto", "padded", "thd"] = "auto"
    """How attention gets its rows: padded blocks, or segments for a variable-length kernel; auto is thd where one is
    installed for the device and dtype."""
    num_minibatches: Count = 1
    """Optimizer steps per training step; with 1 the batch is exactly on-policy and old log-probs are not needed."""
    tensor_parallel: Count = 1
    pipeline_parallel: Count = 1
    sequence_parallel: bool = False
    """Tensor-parallel ranks also share the tokens between matrix products; without tensor parallelism it does nothing."""
    context_parallel: Count = 1
    """Not supported: only 1."""
    virtual_pipeline: Count | None = None
    """Not supported: only null (megatron's interleaved schedule)."""
    peft: str | None = None
    """Not supported: only null (LoRA and other adapters)."""
    freeze_vision: bool = False
    """The vision tower and its mergers are not trained."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of keeping it: parts of every decoder layer, or whole layers."""
    recompute_modules: tuple[Literal["core_attn", "mlp"], ...] = ("core_attn",)
    """Of selective recomputation."""
    recompute_method: Literal["uniform", "block"] = "uniform"
    """Of full recomputation: every unit of ``recompute_num_layers`` layers, or only so many layers of a stage."""
    recompute_num_layers: Count = 1
    distributed_optimizer: bool = False
    """Optimizer state and master weights are sharded over the data-parallel replicas."""
    offload_optimizer: bool = False
    """Gradients go to the host, where Adam keeps its state and steps; GPU only, with the distributed optimizer."""
    logprob_chunk_tokens: Count | None = None
    """Trained tokens whose logits exist at the same time; null: as many as fit 512 MiB of float32 logits."""


class SyncConfig(Section):
    """How the policy's weights reach the engines after an update, and how that is proven."""

    transport: Literal["auto", "iterator", "shared_memory", "broadcast", "disk"] = "auto"
    """In-process engines read the actor's tensors one by one (iterator). Servers get buckets: in shared memory on the
    trainer's host, by broadcasts across hosts (NCCL from a GPU, gloo from a CPU), or as files. auto: shared memory where
    every server is on this host, else broadcasts; trtllm has a way of its own."""
    bucket_mib: Count = 256
    """Size of a bucket; a larger tensor is a bucket of its own. Two exist at a time."""
    directory: str = "outputs/weights"
    """Of the files; servers must see it under the same path."""
    address: str | None = None
    """Under which servers reach this host for broadcasts; null: the one on the way to the first server."""
    timeout_s: Positive = 600.0
    """How long a broadcast waits for all servers."""
    proof_every: Annotated[int, Field(ge=0)] = 1
    """Updates between two proofs that engine and trainer agree on a few probes; 0: never after the start."""


class VllmConfig(Section):
    """vLLM in the trainer's process."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the GPU's memory for its weights, activations and cache; the trainer needs the rest."""
    kv_cache_mib: Count | None = None
    """Memory of the KV cache; null: what gpu_memory_utilization leaves, on a CPU 1024."""
    enforce_eager: bool = False
    """No CUDA graphs and no compilation: starts at once, samples more slowly. Always so on a CPU."""
    max_num_batched_tokens: Count | None = None
    """Tokens of one step; longer prompts are computed in pieces, but on a CPU, where a row must fit. null: vLLM's default."""


class EngineConfig(Section):
    """The generation engine of the rollouts."""

    name: Literal["hf", "vllm", "vllm_server", "trtllm"] = "hf"
    max_num_seqs: Count = 128
    """Requests decoded at the same time; more wait. Servers have a limit of their own."""
    max_model_len: Count = 20_480
    """Longest row in tokens, images included, the engine can hold."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What it computes in; of servers, what they were started with."""
    servers: tuple[str, ...] = ()
    """URLs of running generation servers, dealt to the replicas in turn: server i to replica i modulo their number; replicas
    beyond the number of servers share them."""
    served_model: str | None = None
    """Name under which the servers must serve the policy; null: any."""
    request_timeout_s: Positive = 300.0
    """Of one attempt on one server, waiting in its queue included."""
    max_retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts of a request that failed, on another server where there is one."""
    health_every_s: Positive = 5.0
    """Pause between two looks at every server while requests are on their way."""
    max_outage_s: NonNegative = 60.0
    """How long a request waits for a server to come back when all are down."""
    vllm: VllmConfig = VllmConfig()
    sync: SyncConfig = SyncConfig()


class RolloutConfig(Section):
    """Limits and sampling of one training rollout."""

    max_turns: Count = 3
    """Model segments; a tool call in the last one leaves the rollout unanswered."""
    max_new_tokens: Count = 8_192
    """Tokens sampled in one turn."""
    max_row_tokens: Count = 20_480
    """Tokens of a whole row: prompt, model segments, observations, images."""
    max_time_s: Positive = 600.0
    """Wall seconds of one rollout."""
    temperature: Positive = 1.0
    """The trainer divides its logits by it too; greedy decoding has no gradient to learn from."""
    max_lost: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of a step's or an evaluation's rollouts that may be lost to infrastructure or stay without a verdict, on one replica;
    above it the run stops: a judge that is down, say, leaves what a rule finds right. 1: it stops where all are lost."""


class PythonToolConfig(Section):
    """The python tool: an interpreter per rollout, behind the kernel's walls."""

    sandbox: Literal["auto", "none"] = "auto"
    """auto: every layer this machine has, refused where it has none. none: code of the model runs as this user."""
    timeout_s: Positive = 12.0
    """Of a call that names no timeout."""
    max_timeout_s: Positive = 60.0
    """Longest timeout a call may name."""
    max_output_chars: Count = 4_000
    """Of what a call prints, of its value and of its error, each."""
    memory_mib: Count = 2_048
    """Address space of an interpreter."""
    scratch_mib: Count = 64
    """Files of an interpreter together."""


class SearchConfig(Section):
    """The tool tavily-search; the key of the service is TAVILY_API_KEY of the environment."""

    backend: Literal["tavily", "corpus"] = "tavily"
    """A service that speaks Tavily's protocol, or a file of pages ranked by BM25."""
    corpus: str | None = None
    """JSONL file with title, url and content a line."""
    excluded_domains: tuple[str, ...] = ("huggingface.co",)
    """Never found, in training and evaluation alike: benchmark questions lie there."""
    max_result_chars: Count = 1_000
    """Of one page's passage; it becomes tokens of the row."""
    url: str = "https://api.tavily.com"
    search_depth: Literal["basic", "advanced"] = "basic"
    """advanced is better, slower and costs twice as much."""
    per_minute: Positive | None = 90.0
    """Requests of this process; null: no limit. A development key allows 100, and all replicas share it."""
    max_concurrent: Count = 8
    """Requests on their way at the same time."""
    timeout_s: Positive = 15.0
    """Of one attempt."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    """Of an attempt that met a busy or absent service, with growing pauses."""
    max_time_s: Positive = 50.0
    """Of all attempts of one call, waiting for its turn included; then the rollout is lost and retried."""
    cache_dir: str | None = "outputs/search_cache"
    """Answers on disk, shared by runs, by request: a rerun is free and finds the same; null: none."""


class ToolLimitsConfig(Section):
    """Bounds of one tool's calls."""

    max_concurrent: Count | None = None
    """Calls of this process at the same time; further ones wait, which their timeout does not count. null: no limit."""
    timeout_s: Positive | None = None
    """Of one call; null: tools.timeout_s."""


class ToolsConfig(Section):
    """What the model may call."""

    names: tuple[str, ...] = ("image_zoom_in",)
    """Tools offered in the system turn, in the order of the schemas: built-in ones, or ``module:factory`` and
    ``path/to/file.py:factory`` of one's own."""
    instructions: str | None = None
    """System text before the tools. ``agent``: how to work, to use each tool and to answer (tools/agent_prompt.yaml), what speaks of
    tools left out where there are none; a path: that text file; null: none, as in the embedded world."""
    options: dict[str, dict[str, Any]] = {}
    """Keyword arguments of one's own tools, by their entry in ``names``."""
    servers: dict[str, tuple[str, ...]] = {}
    """Tools that run on tool servers (``nemo-axpo tool-server``): addresses by tool name."""
    limits: dict[str, ToolLimitsConfig] = {}
    """By entry in ``names``."""
    python: PythonToolConfig = PythonToolConfig()
    search: SearchConfig = SearchConfig()
    min_crop_side: Count | None = None
    """Shortest side of a crop in pixels; a smaller box grows around its centre. null: one vision token."""
    observation: str = "Image {index} is the crop."
    """Text of image_zoom_in's observation; ``{index}`` is the index of the new image."""
    timeout_s: Positive = 60.0
    """Limit of one call, above the limits tools set themselves."""
    max_error_chars: Count = 400
    """Longer error texts are cut; they become tokens of the row."""


VerifierName = Literal["exact_match", "multiple_choice", "token_f1", "number", "math", "judge"]


class MathRewardConfig(Section):
    """The verifier ``math``: worker processes with a deadline."""

    num_workers: Count = 2
    """Processes of every replica."""
    cpu_s: Positive = 3.0
    """CPU seconds of one answer; one that needs more is wrong."""
    stall_s: Positive = 60.0
    """Wall seconds of one answer; then the machine is too busy, and it is verified again."""
    memory_mib: Count = 1_024
    """Memory of one answer; one that needs more is wrong."""
    max_answer_chars: Count = 2_000
    """A longer answer is wrong."""


class JudgeConfig(Section):
    """The verifier ``judge``: a model behind an OpenAI-compatible endpoint."""

    url: str | None = None
    """Up to and without ``/chat/completions``, e.g. ``https://api.openai.com/v1``."""
    model: str | None = None
    key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable of the key, which is never part of a config; null: the endpoint needs none."""
    body: dict[str, Any] = {}
    """Further fields of every request: temperature, max_tokens, reasoning_effort …"""
    has_rule: bool = True
    """An answer that reads as a reference is right without asking."""
    cache_dir: str | None = "outputs/judge_cache"
    """Verdicts on disk, shared by runs; null: none."""
    max_answer_chars: Count = 1_000
    """A longer answer is wrong: policies learn to talk a judge over."""
    max_concurrent: Count = 32
    """Requests on their way at the same time."""
    timeout_s: Positive = 60.0
    """Of one attempt."""
    max_retries: Annotated[int, Field(ge=0)] = 4
    """Of an attempt that met a busy or absent judge, with growing pauses."""
    max_time_s: Positive = 300.0
    """Of all attempts of one answer together."""


class RewardsConfig(Section):
    """Which verifier judges the answers of which data source."""

    sources: dict[str, VerifierName | tuple[VerifierName, ...]] = {
        "world": "exact_match",
        "world_specks": "exact_match",
    }
    """By source, one verifier, or several of which one must say right."""
    needs_answer_block: bool = True
    """False: where a turn has no ``<answer>`` block its last box counts, for policies that never learned the format."""
    max_retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts to verify an answer when the verifier fails, before its rollout is left out."""
    f1_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Smallest token F1 of a right answer."""
    number_tolerance: NonNegative = 1e-3
    """Largest difference of a right answer of the verifier ``number``."""
    math: MathRewardConfig = MathRewardConfig()
    judge: JudgeConfig = JudgeConfig()


class TrainConfig(Section):
    """Length of the run and what it leaves behind."""

    num_steps: Count = 200
    """Rollout-and-update steps of the run."""
    eval_every: Annotated[int, Field(ge=0)] = 50
    """Steps between evaluations; 0 evaluates only before and after training."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 50
    """Steps between checkpoints; 0 writes only the last one."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept."""
    checkpoint_async: bool = True
    """A checkpoint is written while the next steps run; it holds a copy of the state on the CPU meanwhile."""
    record_every: Annotated[int, Field(ge=0)] = 10
    """Steps between recorded groups (trees of the report); 0 records none."""


class EvalConfig(Section):
    """Evaluation on held-out questions."""

    num_questions: Count = 300
    num_rollouts: Count = 4
    """Rollouts per question: k of Pass@k."""
    seed: int = 1_000_003
    """Chooses the held-out questions, and nothing else does: every run is asked the same ones."""
    temperature: NonNegative = 1.0
    """0 is greedy decoding."""
    window_questions: Annotated[int, Field(ge=0)] = 600
    """Questions, N rollouts each, on which a warm start is measured; 0 skips it."""


class BenchmarksConfig(Section):
    """How benchmarks are asked (``nemo-axpo eval --benchmark``); defaults are the paper's where it has one."""

    num_rollouts: Count = 4
    """Rollouts per question: k of Pass@k."""
    temperature: NonNegative = 0.7
    """0 is greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.8
    top_k: Annotated[int, Field(ge=0)] = 20
    """0 keeps the whole vocabulary."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 1.5
    """Subtracted from the logits of tokens that the turn already holds."""
    max_turns: Count = 5
    """Model segments of a rollout."""
    max_new_tokens: Count | None = None
    """Tokens sampled in one turn; null: as many as the row has room for."""
    max_row_tokens: Count = 32_768
    """Tokens of a whole row: prompt, model segments, observations, images."""
    max_time_s: Positive = 3_600.0
    """Wall seconds of one rollout."""
    seed: int = 0
    """Of the sampling and of the intervals."""
    max_questions_in_flight: Count = 32
    """Questions asked at the same time, all their rollouts at once; their images are in memory."""
    max_failures: Count = 8
    """Questions in a row that nobody could answer or judge, after which the evaluation stops: something is down."""
    keep_text: bool = True
    """Records hold what the model wrote, and not its answers alone."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Level of the intervals."""
    num_resamples: Count = 10_000
    """Of the bootstrap."""


class SftConfig(Section):
    """Supervised training on trajectories, or on fresh samples of the embedded world's warm start."""

    trajectories: tuple[str, ...] = ()
    """Directories of ``nemo-axpo distill``; none: the warm start of the embedded world."""
    num_epochs: Positive = 3.0
    """Over the trajectories; may end within an epoch."""
    num_steps: Count = 300
    """Of the warm start, which has no epochs."""
    batch_size: Count = 64
    """Trajectories per step of the whole job."""
    max_row_tokens: Count = 20_480
    """Longer trajectories are left out."""
    lr: Positive = 1e-5
    """Peak learning rate; cosine decay."""
    min_lr_ratio: Probability = 0.0
    """Last learning rate as a share of the peak."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Steps of linear warm-up."""
    warmup_share: Probability | None = None
    """The same as a share of all steps; null: ``warmup_steps`` counts."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 0
    """Steps between checkpoints to resume from; 0: none."""
    weight_decay: NonNegative = 0.01
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    clip_grad: NonNegative = 1.0
    """Largest global gradient norm; 0 turns clipping off."""


class ServersConfig(Section):
    """Generation servers that a submitted job starts beside its trainer."""

    num_nodes: Annotated[int, Field(ge=0)] = 0
    """Nodes of their own; 0: they take GPUs of the trainer's nodes, after the trainer's."""
    per_node: Annotated[int, Field(ge=0)] = 0
    """Servers of each of these nodes; 0: the job starts none."""
    gpus_each: Count = 1
    """GPUs of a server: its tensor parallelism."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that a server takes."""
    max_num_seqs: Count = 128
    """Requests that a server decodes at the same time."""
    first_port: Annotated[int, Field(ge=1024, le=65_000)] = 8000
    """The first server of a node listens here, the next one a port higher."""
    start_timeout_min: Positive = 30.0
    """How long the trainer waits for all of them."""


class ToolServersConfig(Section):
    """Tool servers that a submitted job starts: tools then run on other nodes' CPUs than the trainer's."""

    num_nodes: Annotated[int, Field(ge=0)] = 0
    """Nodes that run one, those of generation servers first; 0: tools run beside the trainer."""
    tools: tuple[str, ...] = ("python",)
    """Which of ``tools.names``."""
    port: Annotated[int, Field(ge=1024, le=65_000)] = 8900
    max_concurrent_calls: Count = 64


class EndpointConfig(Section):
    """A teacher behind an OpenAI-compatible chat endpoint."""

    url: str | None = None
    """Up to and without ``/chat/completions``, e.g. ``http://host:8000/v1``."""
    model: str | None = None
    key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable of the key, which is never part of a config; null: the endpoint needs none."""
    body: dict[str, Any] = {}
    """Further fields of every request; null removes one."""
    max_concurrent: Count = 64
    """Requests on their way at the same time."""
    timeout_s: Positive = 600.0
    """Of one attempt."""
    max_retries: Annotated[int, Field(ge=0)] = 4
    """Of an attempt that met a busy or absent endpoint, with growing pauses."""
    max_time_s: Positive = 1_800.0
    """Of all attempts of one turn together."""


class DistillConfig(Section):
    """A teacher's right answers as trajectories for supervised training."""

    teacher: Literal["engine", "endpoint", "scripted"] = "engine"
    """The checkpoint model.path on the config's engine; a chat endpoint; or the embedded world's script. For the last two,
    model.path is the student: its tokenizer and image processor decide how rows are written."""
    endpoint: EndpointConfig = EndpointConfig()
    num_questions: Count | None = None
    """Of the training stream; null: all, where it has an end."""
    num_rollouts: Count = 4
    """K: rollouts of the teacher per question."""
    num_concurrent: Count = 32
    """Questions under way at the same time."""
    temperature: NonNegative = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 keeps the whole vocabulary; endpoints are asked by ``endpoint.body``."""
    max_per_question: Count = 1
    """Right trajectories kept of a question."""
    tool_share: Probability | None = 0.25
    """Share of the kept trajectories with a tool call, by leaving out some of the other kind; null: as it comes."""
    direct_accuracy: Probability = 0.5
    """Of the scripted teacher: share of right answers without a tool call."""


class FilterConfig(Section):
    """Which questions are worth reinforcement learning."""

    teacher: str | None = None
    """Directory of ``nemo-axpo distill``: questions its teacher never solved are dropped; null: none are for that."""
    num_questions: Count | None = None
    """Of the training stream; null: all, where it has an end."""
    num_rollouts: Count = 4
    """Rollouts of the policy per question; solved in all of them, it is dropped."""
    num_concurrent: Count = 32
    """Questions under way at the same time."""
    temperature: NonNegative = 1.0


class JobConfig(Section):
    """The ranks of a job, its machines and its time."""

    timeout_min: Positive = 120.0
    """Minutes a rank waits for the others, the rollouts of the slowest included, before the job ends."""
    max_time: str | None = Field(default=None, pattern=r"^\d+:\d{1,2}:\d{1,2}:\d{1,2}$")
    """Days:hours:minutes:seconds after which training saves a checkpoint and ends, to be resumed; null: no limit."""
    num_nodes: Count | None = None
    """Nodes of the trainer; null: however many ranks are started."""
    gpus_per_node: Count = 8
    """Ranks of the trainer on each of ``num_nodes``."""
    servers: ServersConfig = ServersConfig()
    tool_servers: ToolServersConfig = ToolServersConfig()

    @property
    def world_size(self) -> int | None:
        """Ranks of the trainer, where the config says it."""
        return self.num_nodes and self.num_nodes * self.gpus_per_node


class WandbConfig(Section):
    """Weights & Biases; the key comes from the environment (WANDB_API_KEY), never from here."""

    enabled: bool = False
    project: str = "nemo_axpo"


class LoggingConfig(Section):
    """Where metrics go besides metrics.jsonl."""

    tensorboard: bool = True
    wandb: WandbConfig = WandbConfig()


class Config(Section):
    """A whole run."""

    seed: int = 0
    """Root of every derived seed."""
    output_dir: str = "outputs/run"
    """Run directory."""
    device: Literal["cpu", "cuda"] = "cpu"
    loop: Literal["native", "aligner"] = "native"
    """Which training loop runs: ours, or NeMo-Aligner's ``ReinforceTrainer.fit`` with the same parts (docs/aligner.md)."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    world: WorldConfig = WorldConfig()
    algorithm: AlgorithmConfig = AxpoConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    actor: ActorConfig = ActorConfig()
    engine: EngineConfig = EngineConfig()
    rollout: RolloutConfig = RolloutConfig()
    tools: ToolsConfig = ToolsConfig()
    rewards: RewardsConfig = RewardsConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    benchmarks: BenchmarksConfig = BenchmarksConfig()
    sft: SftConfig = SftConfig()
    distill: DistillConfig = DistillConfig()
    filter: FilterConfig = FilterConfig()
    job: JobConfig = JobConfig()
    logging: LoggingConfig = LoggingConfig()

    @property
    def trainer_gpus(self) -> int:
        """GPUs that the trainer's ranks take on each of their nodes."""
        return self.job.gpus_per_node if self.device == "cuda" else 0
