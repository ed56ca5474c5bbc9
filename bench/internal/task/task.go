// Package task measures how well a model uses long contexts: bits per byte of
// the same bytes under contexts of growing length, and recall of a planted
// number by depth. Everything is drawn from a seed, so that methods and lengths
// are compared on the same bytes.
package task

import (
	"fmt"
	"math/rand/v2"

	"github.com/longctx/longctx/bench/internal/model"
)

// Depths is the number of depths at which a key is planted: at 5 %, 15 %, … of
// the context.
const Depths = 10

// Trial is a sequence to run, and what should follow its last tokens.
type Trial struct {
	Tokens  []int32 // BOS and bytes
	Targets []byte  // of the last len(Targets) tokens
	Depth   int     // of recall: 0 to Depths−1
}

// Material is what trials are cut from.
type Material struct {
	Text    []byte
	Trained int // length L of the model, BOS included
	Seed    uint64
}

// Need is the number of bytes that trials of up to length tokens are cut from.
func Need(length int) int { return 4*length + 4096 }

// The lines of recall, with a name of three letters and a number of five
// digits.
const (
	keyLine      = "\n// KEY %s = %s\n"
	getLine      = "\n// GET %s = %s"
	numberLength = 5
)

// Windows returns count trials of length tokens whose targets are the last
// Trained bytes before the same ends at every length: the context grows to the
// left.
func (m *Material) Windows(count, length, longest int) ([]Trial, error) {
	if err := m.check(length, longest); err != nil {
		return nil, err
	}
	if length < m.Trained {
		return nil, fmt.Errorf("task: length %d, want at least the trained %d", length, m.Trained)
	}
	r := rand.New(rand.NewPCG(m.Seed, 1))
	out := make([]Trial, count)
	for i := range out {
		end := m.end(r, longest)
		out[i] = Trial{Tokens: tokens(m.Text[end-length : end-1]), Targets: m.Text[end-m.Trained : end]}
	}
	return out, nil
}

// Recall returns count trials of length tokens: text with a key planted at a
// depth and asked for at the end. Names and numbers are the same at every
// length.
func (m *Material) Recall(count, length, longest int) ([]Trial, error) {
	if err := m.check(length, longest); err != nil {
		return nil, err
	}
	r := rand.New(rand.NewPCG(m.Seed, 2))
	out := make([]Trial, count)
	for i := range out {
		end := m.end(r, longest)
		name, number := Pair(r)
		key, get := fmt.Sprintf(keyLine, name, number), fmt.Sprintf(getLine, name, number)
		buf := make([]byte, 0, length)
		buf = append(buf, m.Text[end-(length-len(get)):end]...)
		depth := i % Depths
		at := (2*depth + 1) * (len(buf) - len(key)) / (2 * Depths)
		copy(buf[at:], key)
		buf = append(buf, get...)
		out[i] = Trial{Tokens: tokens(buf[:length-1]), Targets: buf[length-numberLength:], Depth: depth}
	}
	return out, nil
}

// DepthOf is where a key of depth number d lies, 0 at the start of the context.
func DepthOf(d int) float64 { return float64(2*d+1) / (2 * Depths) }

// Pair draws a name and a number.
func Pair(r *rand.Rand) (name, number string) {
	var n [3]byte
	for i := range n {
		n[i] = byte('a' + r.IntN(26))
	}
	var d [numberLength]byte
	for i := range d {
		d[i] = byte('0' + r.IntN(10))
	}
	return string(n[:]), string(d[:])
}

func (m *Material) check(length, longest int) error {
	if least := len(keyLine) + len(getLine) + 16; length < least || length > longest {
		return fmt.Errorf("task: length %d, want %d to %d", length, least, longest)
	}
	if need := Need(longest); len(m.Text) < need {
		return fmt.Errorf("task: a text of %d bytes, want at least %d for length %d", len(m.Text), need, longest)
	}
	return nil
}

// end draws where a trial ends, with room for the longest before it. It does
// not depend on the length of the trial.
func (m *Material) end(r *rand.Rand, longest int) int {
	return longest + r.IntN(len(m.Text)-longest)
}

func tokens(b []byte) []int32 {
	out := make([]int32, 1, len(b)+1)
	out[0] = model.BOS
	for _, x := range b {
		out = append(out, int32(x))
	}
	return out
}
