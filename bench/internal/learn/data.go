// Package learn trains a model through the library's backward pass: windows of
// text, in most of which numbers are planted and asked for, AdamW, and a
// learning rate that falls once recall is learnt.
package learn

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/bench/internal/task"
)

const (
	line         = len("\n// KEY abc = 12345\n")
	firstDigit   = len("\n// KEY abc = ")
	numberLength = 5
	digitWeight  = 5 // of the loss of a digit that can be known
	repeatWeight = 2 // of a letter that repeats a word
)

// batch is windows of text as inputs and targets: input t is BOS or byte t−1,
// target t is byte t.
type batch struct {
	inputs  [][]int32
	targets []int32
	weights []float32
	plain   []int // rows of the windows without numbers
	asked   []int // rows of the first digits of numbers asked for
}

// draw makes a batch of windows as long as the model's context. In the first
// stage, on a grid, three of four have numbers planted; after it two, and one
// has repeated words.
func draw(r *rand.Rand, text []byte, windows, length int, grid bool) *batch {
	b := &batch{weights: make([]float32, windows*length)}
	for i := range b.weights {
		b.weights[i] = 1
	}
	for w := range windows {
		at := r.IntN(len(text) - length)
		buf := slices.Clone(text[at : at+length])
		switch {
		case w%4 < 2 || w%4 == 2 && grid:
			for _, a := range plant(r, buf, grid) {
				b.asked = append(b.asked, w*length+a)
				for d := range numberLength {
					b.weights[w*length+a+d] = digitWeight
				}
			}
		case w%4 == 2:
			for _, c := range repeat(r, buf) {
				for t := c[0]; t < c[1]; t++ {
					b.weights[w*length+t] = repeatWeight
				}
			}
		default:
			for t := range length {
				b.plain = append(b.plain, w*length+t)
			}
		}
		input := make([]int32, length)
		input[0] = model.BOS
		for t, x := range buf {
			if t+1 < length {
				input[t+1] = int32(x)
			}
			b.targets = append(b.targets, int32(x))
		}
		b.inputs = append(b.inputs, input)
	}
	return b
}

// places is where count pieces of width start in length bytes, in order. On a
// grid of width they are learnt far sooner, but the model copies from multiples
// of it back instead of looking for the name; free of it, all ways to place them
// are equally likely.
func places(r *rand.Rand, count, width, length int, grid bool) []int {
	out := make([]int, count)
	if grid {
		shift := r.IntN(length%width + 1)
		for i, k := range r.Perm(length / width)[:count] {
			out[i] = shift + k*width
		}
		slices.Sort(out)
		return out
	}
	for i := range out {
		out[i] = r.IntN(length - count*width + 1)
	}
	slices.Sort(out)
	for i := range out {
		out[i] += i * width
	}
	return out
}

// plant writes one to three KEY lines, and GET lines of earlier ones, into buf
// and returns where the digits of each GET start.
func plant(r *rand.Rand, buf []byte, grid bool) (asked []int) {
	most := len(buf) / line
	if most < 2 {
		return nil
	}
	lines := 2 + r.IntN(min(5, most-1))
	keys := 1 + r.IntN(min(3, lines-1))
	var known [][2]string
	for i, at := range places(r, lines, line, len(buf), grid) {
		word := "GET"
		var pair [2]string
		if i == 0 || i < lines-1 && len(known) < keys && r.IntN(2) == 0 {
			pair[0], pair[1] = task.Pair(r)
			known, word = append(known, pair), "KEY"
		} else {
			pair = known[r.IntN(len(known))]
			asked = append(asked, at+firstDigit)
		}
		copy(buf[at:], fmt.Sprintf("\n// %s %s = %s\n", word, pair[0], pair[1]))
	}
	return asked
}

// repeat writes a random word two or three times into buf and returns where
// each copy can be known: after its first letters. It teaches copying from any
// distance sooner than numbers do.
func repeat(r *rand.Rand, buf []byte) (known [][2]int) {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	n, times := 8+r.IntN(23), 2+r.IntN(2)
	if n*times > len(buf) {
		return nil
	}
	word := make([]byte, n)
	for i := range word {
		word[i] = letters[r.IntN(len(letters))]
	}
	for i, at := range places(r, times, n, len(buf), false) {
		copy(buf[at:], word)
		if i > 0 {
			known = append(known, [2]int{at + 3, at + n})
		}
	}
	return known
}
