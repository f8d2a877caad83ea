"""Whether the server still takes work."""


class Lifecycle:
    """Shared by whoever shuts the server down and the routes that then refuse.

    While ``draining``, answers under way are finished and no completion is begun.
    """

    def __init__(self) -> None:
        self.draining = False
