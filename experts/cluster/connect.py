"""Connects to a Ray cluster, and hands out its workers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import LifoQueue
from typing import Any

from experts.cluster.asker import Asker
from experts.cluster.data import ClusterEncoder, grade_answers
from experts.cluster.expert import ClusterExpert, Worker
from experts.cluster.session import ray_session
from experts.encoder import Encoder
from experts.grading import Grade
from experts.pool import make_experts
from experts.specs import AnySpec, ExpertSpec, HuggingFaceSpec, LocalSpec, OpenAISpec, Pool, VllmSpec
from experts.spending import SpendCap
from experts.types import Expert, Query, TextEncoder
from leeroo_env.errors import InputError
from leeroo_env.variants import entry_of

CALLS_PER_ASKER = 64  # at the same time, on one server
BATCHES_IN_FLIGHT = 2  # per worker and server: the next calls are ready while the last ones of a batch still run
SHARED_VARIABLES = ("OPENAI_BASE_URL", "HF_TOKEN")  # what the libraries read, besides what pool.yaml names


@contextmanager
def connect(address: str | None = None, threads: int = 1, cpus: int | None = None) -> Iterator[Cluster]:
    """The cluster at an address ("host:port", or "auto" for one that runs on this machine), or at $RAY_ADDRESS; without
    either, one that is started on this machine and ends with this block.

    Args:
        threads: torch threads of each local model.
        cpus: of a cluster that is started here; all if None.

    Raises:
        InputError: Ray is not installed, or no cluster answers at the address.
    """
    with ray_session("--engine ray", address, cpus):
        from ray.data import DataContext

        DataContext.get_current().enable_progress_bars = False
        DataContext.get_current().print_on_execution_start = False
        cluster = Cluster(threads)
        try:
            yield cluster
        finally:
            cluster.stop()


@dataclass
class Cluster:
    """The workers that this program has in a cluster.

    Attributes:
        threads: torch threads of each local model.
    """

    threads: int
    _remote: list[Worker] = field(default_factory=list)  # ask servers
    _local: dict[int, list[Worker]] = field(default_factory=dict)  # ask local models; by the GPUs of each
    _free: dict[int, LifoQueue[Worker]] = field(default_factory=dict)  # of these, the ones without work

    def experts(self, pool: Pool, names: Sequence[str] | None, spend_cap: SpendCap) -> list[ClusterExpert]:
        """As `make_experts`: the experts with these names, asked by workers.

        A server's `concurrency` and `requests_per_minute` are divided among the workers that ask it, so that they hold
        for the whole cluster. Local models are loaded by as many workers as the cluster has CPUs or GPUs for; on a GPU
        one model at a time.
        """
        make_experts(pool, names, SpendCap())  # raises InputError for what is missing
        specs, all_names = pool.select(names), {spec.name for spec in pool.experts}
        entries: dict[str, list[AnySpec]] = {}
        for spec in specs:
            entries.setdefault(entry_of(spec.name, all_names), []).append(spec)
        pool = pool.model_copy(update={"experts": tuple(map(_on_any_gpu, pool.experts))})
        made = self._remote_experts(pool, [e for e in entries.values() if isinstance(e[0], OpenAISpec)], spend_cap)
        on_cpus: tuple[Pool, list[str]] = pool, []
        for variants in entries.values():
            if isinstance(variants[0], LocalSpec):
                gpus = self._gpus(variants[0])
                purpose = (pool, []) if gpus else on_cpus
                purpose[1].extend(spec.name for spec in variants)
                for spec in variants:
                    batch_size = variants[0].batch_size
                    made[spec.name] = ClusterExpert(spec, spend_cap, self._local_lanes(gpus), purpose, batch_size)
        return [made[spec.name] for spec in specs]

    def expert(self, spec: ExpertSpec, spend_cap: SpendCap) -> Expert:
        """As `make_expert`: one expert."""
        (expert,) = self.experts(Pool.model_validate({"experts": [spec]}), None, spend_cap)
        return expert

    def grade(self, grader: str, texts: Sequence[str], queries: Sequence[Query]) -> list[Grade]:
        """The grades of answers to queries, by a grader of `GRADERS`."""
        return grade_answers(grader, texts, queries, self.unload)

    def encoder(self, encoder: TextEncoder) -> TextEncoder:
        """The encoder, asked through workers if it is a model."""
        return ClusterEncoder(encoder, self.unload) if isinstance(encoder, Encoder) else encoder

    def unload(self) -> None:
        """Stops the workers with local models, which frees their CPUs or GPUs; those that are needed start again."""
        for workers in self._local.values():
            for worker in workers:
                worker.stop()

    def stop(self) -> None:
        """Stops all workers."""
        self.unload()
        for worker in self._remote:
            worker.stop()

    def _remote_experts(
        self, pool: Pool, entries: Sequence[Sequence[AnySpec]], spend_cap: SpendCap
    ) -> dict[str, ClusterExpert]:
        """The experts on servers, given with their variants, by name: asked by no more workers than have something to
        do, which are spread over the machines."""
        import ray

        calls = [spec.concurrency for spec, *_ in entries if isinstance(spec, OpenAISpec)]
        wanted = [math.ceil(n / CALLS_PER_ASKER) for n in calls]
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        most = max(len(nodes), int(ray.cluster_resources().get("CPU", 1)))
        shares: list[dict[str, AnySpec]] = [{} for _ in range(min(most, sum(wanted)))]
        workers = [self._remote_worker(pool, share, nodes[i % len(nodes)]) for i, share in enumerate(shares)]
        first, made = 0, {}
        for variants, n in zip(entries, (min(n, len(workers)) for n in wanted), strict=True):
            chosen = [(first + i) % len(workers) for i in range(n)]
            first += n
            for spec in variants:
                lanes: LifoQueue[Worker] = LifoQueue()
                for i, worker in enumerate(chosen):
                    shares[worker][spec.name] = _share(spec, i, n)
                for worker in chosen * BATCHES_IN_FLIGHT:
                    lanes.put(workers[worker])
                made[spec.name] = ClusterExpert(spec, spend_cap, lanes, None, _share(spec, 0, n).concurrency)
        return made

    def _remote_worker(self, pool: Pool, share: dict[str, AnySpec], node: str) -> Worker:
        """A worker on a machine of the cluster, or another one after that was lost, for the experts in `share`."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}

        def start(_: None) -> Any:
            specs = tuple(share.get(spec.name, spec) for spec in pool.experts)
            return self._start(options, pool.model_copy(update={"experts": specs}), tuple(share))

        self._remote.append(Worker(start))
        return self._remote[-1]

    def _gpus(self, spec: LocalSpec) -> int:
        """How many GPUs a copy of a local model takes."""
        import ray

        there = int(ray.cluster_resources().get("GPU", 0))
        if isinstance(spec, VllmSpec):  # which also runs on CPUs
            sizes = (spec.engine.get(f"{name}_parallel_size", 1) for name in ("tensor", "pipeline"))
            gpus = min(there, 1) * math.prod(int(size) for size in sizes)
        else:
            gpus = int(isinstance(spec, HuggingFaceSpec) and spec.device.startswith("cuda"))
        if gpus > there:
            raise InputError(f"{spec.name}: needs {gpus} GPUs, the cluster has {there}")
        return gpus

    def _local_lanes(self, gpus: int) -> LifoQueue[Worker]:
        """The workers for local models, which have so many GPUs each, or CPUs."""
        import ray

        if gpus not in self._local:
            there = ray.cluster_resources()
            n = there["GPU"] // gpus if gpus else there.get("CPU", 1) // self.threads
            options = {"num_gpus": gpus} if gpus else {"num_cpus": self.threads}
            self._local[gpus] = [Worker(lambda purpose: self._start(options, *purpose)) for _ in range(max(1, int(n)))]
            self._free[gpus] = LifoQueue()
            for worker in self._local[gpus]:
                self._free[gpus].put(worker)
        return self._free[gpus]

    def _start(self, options: dict[str, Any], pool: Pool, names: Sequence[str]) -> Any:
        import ray

        specs = [spec for spec in pool.select(names) if isinstance(spec, OpenAISpec)]
        wanted = {*SHARED_VARIABLES, *(name for spec in specs for name in (spec.api_key_env, spec.base_url_env))}
        environment = {name: value for name in wanted if name and (value := os.environ.get(name)) is not None}
        actor = ray.remote(Asker).options(max_restarts=0, max_task_retries=0, **options)
        return actor.remote(pool, names, environment, self.threads)


def _on_any_gpu(spec: AnySpec) -> AnySpec:
    """The same model on the GPU that Ray shows a worker."""
    on_gpu = isinstance(spec, HuggingFaceSpec) and spec.device.startswith("cuda")
    return spec.model_copy(update={"device": "cuda"}) if on_gpu else spec


def _share(spec: AnySpec, i: int, n: int) -> OpenAISpec:
    """What the i-th of n workers may do."""
    assert isinstance(spec, OpenAISpec)
    calls, rate = spec.concurrency // n + (i < spec.concurrency % n), spec.requests_per_minute
    share = rate and rate * calls / spec.concurrency
    return spec.model_copy(update={"concurrency": calls, "requests_per_minute": share})
