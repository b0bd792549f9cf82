"""What every runtime asks of a model: a name for it, keys that its config states, an activation.

Each function gives the reason why a runtime cannot take the model, in one line, or None.
"""

from collections.abc import Collection

from edgeq.architectures.families import families_named
from edgeq.architectures.features import WINDOWS, features_of
from edgeq.decoder import Decoder


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


def why_not_features(decoder: Decoder, who: str, computes: Collection[str]) -> str | None:
    """Refuse what a model computes beyond a Llama and a runtime does not compute for its type.

    Windows are up to the runtime: one that attends to everything is given shorter texts.
    """
    for feature in features_of(decoder):
        if feature not in computes and feature != WINDOWS:
            return (
                f"{feature} of a {decoder.model_type} model: {who} does not compute that; "
                "use another format"
            )
    return None


def why_not_activation(
    decoder: Decoder, who: str, known: Collection[str] = ("silu",)
) -> str | None:
    """Refuse a model that is computed with another activation than a runtime computes it with."""
    for layer in decoder.layers:
        if layer.mlp is not None and layer.mlp.activation not in known:
            return (
                f"hidden_act '{layer.mlp.activation}' is not supported; "
                f"{who} computes {decoder.model_type} with {' or '.join(known)}"
            )
    return None


def why_not_biases(decoder: Decoder, who: str, biased: Collection[str]) -> str | None:
    """Refuse a bias that a runtime's model has no place for; `biased` are those it has."""
    for layer in decoder.layers:
        for linear in layer.linears:
            if linear.bias is not None and linear.name not in biased:
                return (
                    f"the bias of {linear.name} is not supported; "
                    f"{who}'s {decoder.model_type} has none there, use another format"
                )
    return None


def why_not_heads(decoder: Decoder, who: str, *, plain: bool) -> str | None:
    """Refuse heads of another size than hidden size / heads, where a runtime knows no other."""
    attention = decoder.attention
    if not plain or attention.head_size * attention.heads == decoder.hidden:
        return None
    return (
        f"head_dim {attention.head_size} of a {decoder.model_type} model "
        f"is not hidden_size {decoder.hidden} / {attention.heads} heads; "
        f"{who}'s {decoder.model_type} knows no other, use another backend or format"
    )
