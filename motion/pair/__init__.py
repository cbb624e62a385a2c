"""Two people who see each other (ComMDM): block, pipeline, data, recipe, judgement."""
