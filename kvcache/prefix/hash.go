package prefix

import (
	"crypto/sha256"
	"encoding/binary"
	"sort"
)

// Hash names a page and all that comes before it.
type Hash [32]byte

// Hasher chains the pages of a Prompt. Its methods may be called from several
// goroutines.
type Hasher interface {
	// Root is what the first page of p has for a parent.
	Root(p *Prompt) Hash
	// Page is the hash of page i, of the tokens i·size to (i+1)·size of p.
	Page(parent Hash, p *Prompt, i, size int) Hash
}

// Hashes are those of all full pages of a Prompt, of size tokens each: by what a
// router or a store of pages elsewhere may know them.
func Hashes(h Hasher, p *Prompt, size int) ([]Hash, error) {
	if size < 1 {
		return nil, valueError("Hashes: size", size, "at least 1")
	}
	g, err := cut(p, size)
	if err != nil {
		return nil, err
	}
	out := make([]Hash, g.pages())
	parent := h.Root(p)
	for i := range out {
		out[i] = h.Page(parent, p, i, size)
		parent = out[i]
	}
	return out, nil
}

// SHA256 is the Hasher of this package. Every part of a Prompt is hashed with a
// tag of what it is and its length, so that no salt is taken for an adapter, nor
// the end of one for the beginning of another.
type SHA256 struct{}

// Root hashes Namespace, Salt and Adapter.
func (SHA256) Root(p *Prompt) Hash {
	b := []byte("longctx prefix 1\n")
	for _, part := range [...]struct {
		tag   byte
		value string
	}{{'n', p.Namespace}, {'s', p.Salt}, {'a', p.Adapter}} {
		b = binary.AppendUvarint(append(b, part.tag), uint64(len(part.value)))
		b = append(b, part.value...)
	}
	return sha256.Sum256(b)
}

// Page hashes parent, tokens and media.
func (SHA256) Page(parent Hash, p *Prompt, i, size int) Hash {
	b := make([]byte, 0, 512) // on the stack, for pages of up to 100 tokens
	b = append(append(b, 'p'), parent[:]...)
	b = binary.AppendUvarint(append(b, 't'), uint64(size))
	for _, x := range p.Tokens[i*size : (i+1)*size] {
		b = binary.LittleEndian.AppendUint32(b, uint32(x))
	}
	for _, m := range mediaOf(p, i, size) {
		b = m.append(b, i*size)
	}
	return sha256.Sum256(b)
}

// mediaOf are the media of page i.
func mediaOf(p *Prompt, i, size int) []Media {
	first := sort.Search(len(p.Media), func(k int) bool { return p.Media[k].Offset+p.Media[k].Length > i*size })
	end := first
	for end < len(p.Media) && p.Media[end].Offset < (i+1)*size {
		end++
	}
	return p.Media[first:end]
}

// append writes what a page whose first token is start has of m.
func (m *Media) append(b []byte, start int) []byte {
	b = binary.AppendUvarint(append(b, 'm'), uint64(len(m.ID)))
	b = append(b, m.ID...)
	b = binary.AppendVarint(b, int64(m.Offset-start))
	return binary.AppendUvarint(b, uint64(m.Length))
}

// VLLM gives the block hashes of vLLM's prefix cache with the hash algorithm
// sha256_cbor (vllm/v1/core/kv_cache_utils.py, vllm/utils/hashing.py, as of
// 2026; https://docs.vllm.ai/en/latest/design/prefix_caching.html): SHA-256 of
// the canonical CBOR (RFC 8949, §4.2.3) of
//
//	(parent, tokens, extra)     extra: null, or (adapter?, (media ID, offset − start of the block)…, salt?)
//
// with the salt in the first block alone. vLLM says neither Namespace nor, by a
// tag, whether a string is an adapter or a salt: a prompt with adapter "x" has
// the hashes of one with salt "x" (vllm-project/vllm issue 44701). An Index tells
// them apart, since it compares; a store that goes by these hashes alone does not.
type VLLM struct {
	None Hash // the parent of a first block, NONE_HASH
}

// NewVLLM is VLLM with the NONE_HASH of the processes started with PYTHONHASHSEED
// set to seed; where that is not set vLLM takes a random one.
func NewVLLM(seed string) VLLM {
	return VLLM{sha256.Sum256(appendString(nil, seed))}
}

// Root is None.
func (h VLLM) Root(*Prompt) Hash { return h.None }

// Page hashes (parent, tokens, extra).
func (VLLM) Page(parent Hash, p *Prompt, i, size int) Hash {
	b := make([]byte, 0, 512) // on the stack, for pages of up to 80 tokens
	b = appendHead(b, cborArray, 3)
	b = append(appendHead(b, cborBytes, uint64(len(parent))), parent[:]...)
	b = appendHead(b, cborArray, uint64(size))
	for _, x := range p.Tokens[i*size : (i+1)*size] {
		b = appendInt(b, int64(x))
	}
	media := mediaOf(p, i, size)
	salted := i == 0 && p.Salt != ""
	n := len(media)
	for _, have := range [...]bool{p.Adapter != "", salted} {
		if have {
			n++
		}
	}
	if n == 0 {
		return sha256.Sum256(append(b, cborNull))
	}
	b = appendHead(b, cborArray, uint64(n))
	if p.Adapter != "" {
		b = appendString(b, p.Adapter)
	}
	for _, m := range media {
		b = appendString(appendHead(b, cborArray, 2), m.ID)
		b = appendInt(b, int64(m.Offset-i*size))
	}
	if salted {
		b = appendString(b, p.Salt)
	}
	return sha256.Sum256(b)
}

// Major types of CBOR, and null.
const (
	cborUint   = 0 << 5
	cborNegInt = 1 << 5
	cborBytes  = 2 << 5
	cborText   = 3 << 5
	cborArray  = 4 << 5
	cborNull   = 0xf6
)

// appendHead writes a major type and its argument in the fewest bytes.
func appendHead(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

func appendInt(b []byte, x int64) []byte {
	if x < 0 {
		return appendHead(b, cborNegInt, uint64(-1-x))
	}
	return appendHead(b, cborUint, uint64(x))
}

func appendString(b []byte, s string) []byte {
	return append(appendHead(b, cborText, uint64(len(s))), s...)
}
