"""Whether the server still takes work."""


class Lifecycle:
    """State that the shutdown sets and the routes read.

    While ``leaving``, connections end with their next answer, and ``/ready`` answers 503. While
    ``draining``, running answers are finished too, but no completion begins.
    """

    def __init__(self) -> None:
        self.leaving = False
        self.draining = False
