"""Preparation of corpora: folders of others become manifests."""
