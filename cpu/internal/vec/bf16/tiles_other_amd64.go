//go:build amd64 && !purego && !linux

package bf16

// tilesAllowed: how to ask other systems for tiles is not known here.
func tilesAllowed() bool { return false }
