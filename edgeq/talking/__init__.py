"""Have models write: one prompt continued or answered, or a conversation, each in its runtime."""

from edgeq.talking.conversation import Conversation
from edgeq.talking.opening import answer, open_talker
from edgeq.talking.talker import Reply, Talker

__all__ = ["Conversation", "Reply", "Talker", "answer", "open_talker"]
