"""What one needs to say why an engine was slow."""

from dataclasses import dataclass, field

from engine.compilations import Compilations, watch_triton
from engine.graphs import GraphCache
from engine.scheduler import Scheduler


def _compiled_before() -> Compilations:
    watch_triton()
    return Compilations.now()


@dataclass
class Metrics:
    """Running totals. Prefilled tokens are those computed in prompt chunks, again after a preemption; decoded ones all
    others that a step computed."""

    num_steps: int = 0
    num_prefilled_tokens: int = 0
    num_decoded_tokens: int = 0
    num_generated_tokens: int = 0
    num_requests: int = 0
    num_failed_requests: int = 0
    compiled_before: Compilations = field(default_factory=_compiled_before)

    def snapshot(self, scheduler: Scheduler, graphs: GraphCache) -> dict[str, float]:
        """Every figure by name; why steps ran without a graph is in the names. Compilations are the whole process's."""
        blocks, compiled = scheduler.blocks, Compilations.now()
        values = {
            "steps": self.num_steps,
            "prefilled_tokens": self.num_prefilled_tokens,
            "decoded_tokens": self.num_decoded_tokens,
            "generated_tokens": self.num_generated_tokens,
            "requests": self.num_requests,
            "failed_requests": self.num_failed_requests,
            "preemptions": scheduler.num_preemptions,
            "prefix_hit_rate": blocks.num_hit_tokens / max(1, blocks.num_queried_tokens),
            "blocks": len(blocks.blocks),
            "used_blocks": blocks.num_used,
            "peak_blocks": blocks.peak_used,
            "graph_replays": graphs.num_hits,
            "graph_captures": graphs.num_captures,
            "triton_compilations": compiled.triton - self.compiled_before.triton,
            "dynamo_compilations": compiled.dynamo - self.compiled_before.dynamo,
        }
        fallbacks = {f"no graph: {reason}": count for reason, count in graphs.fallbacks.items()}
        return {name: float(value) for name, value in (values | fallbacks).items()}
