// Package assets is the model and the text that bench uses unless told
// otherwise. README.md says where they come from.
package assets

import _ "embed"

// Model is a safetensors file.
//
//go:embed model.safetensors
var Model []byte

// HeldOut is text that the model was not trained on, compressed with gzip.
//
//go:embed heldout.txt.gz
var HeldOut []byte
