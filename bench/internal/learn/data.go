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

// draw makes a batch of windows as long as the model's context. Three of four
// have numbers planted.
func draw(r *rand.Rand, text []byte, windows, length int) *batch {
	b := &batch{weights: make([]float32, windows*length)}
	for i := range b.weights {
		b.weights[i] = 1
	}
	for w := range windows {
		at := r.IntN(len(text) - length)
		buf := slices.Clone(text[at : at+length])
		if w%4 != 3 {
			for _, a := range plant(r, buf) {
				b.asked = append(b.asked, w*length+a)
				for d := range numberLength {
					b.weights[w*length+a+d] = digitWeight
				}
			}
		} else {
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

// plant writes one to three KEY lines, and GET lines of earlier ones, into buf
// and returns where the digits of each GET start. All ways to place the lines
// are equally likely: on a grid, the model learns to copy from multiples of its
// spacing instead of looking for the name.
func plant(r *rand.Rand, buf []byte) (asked []int) {
	most := len(buf) / line
	if most < 2 {
		return nil
	}
	lines := 2 + r.IntN(min(4, most-1))
	free := make([]int, lines)
	for i := range free {
		free[i] = r.IntN(len(buf) - lines*line + 1)
	}
	slices.Sort(free)
	keys := 1 + r.IntN(min(3, lines-1))
	var known [][2]string
	for i, f := range free {
		at, word := f+i*line, "GET"
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
