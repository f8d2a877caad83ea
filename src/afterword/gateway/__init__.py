"""Engines that are other servers: their protocols, their vocabularies, a pool of them."""
