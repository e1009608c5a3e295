package main

import (
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// chainID is the key of the snapshot that holds all layers.
func chainID(diffs []digest.Digest) string {
	return identity.ChainID(diffs).String()
}
