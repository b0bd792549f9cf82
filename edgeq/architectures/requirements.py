"""What every runtime asks of a model: a name for it, keys that its config states, an activation.

Each function gives the reason why a runtime cannot take the model, in one line, or None.
"""

from edgeq.architectures.families import families_named
from edgeq.decoder import Decoder

KNOWN_ACTIVATION = "silu"


def why_not_named(decoder: Decoder, runtime: str, knows: str) -> str | None:
    """Refuse a model that a runtime, a field of `RuntimeNames`, has no names for.

    `knows` begins the list of the model types that it has names for.
    """
    if getattr(decoder.names, runtime) is not None:
        return None
    known = ", ".join(families_named(runtime))
    return f"model_type '{decoder.model_type}' is not supported; {knows} {known}"


def why_not_stated(decoder: Decoder, who: str, *, context: bool = True) -> str | None:
    """Refuse a config that is silent on the epsilon of norms, or on the longest text."""
    stated = {"max_position_embeddings": decoder.context, "rms_norm_eps": decoder.epsilon}
    if not context:
        del stated["max_position_embeddings"]
    missing = [key for key, value in stated.items() if value is None]
    return f"config.json lacks {', '.join(missing)}, which {who} needs; add it" if missing else None


def why_not_activation(decoder: Decoder, who: str) -> str | None:
    """Refuse a model that is computed with another activation than runtimes compute it with."""
    for layer in decoder.layers:
        if layer.mlp.activation != KNOWN_ACTIVATION:
            return (
                f"hidden_act '{layer.mlp.activation}' is not supported; "
                f"{who} computes {decoder.model_type} with {KNOWN_ACTIVATION}"
            )
    return None
