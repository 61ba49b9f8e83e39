"""One module per corpus reads its label files; `raysers.data.labelled` puts them together."""
