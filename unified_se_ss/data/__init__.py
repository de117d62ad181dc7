"""From folders of recordings to padded batches: folders, manifest, data set, sampler, batch."""
