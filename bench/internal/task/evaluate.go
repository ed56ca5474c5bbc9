package task

import (
	"context"
	"math"
	"time"

	"github.com/longctx/longctx/bench/internal/method"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/kernel"
)

// Point is what was measured of a method at a length.
type Point struct {
	Method, Params, Kernel string
	Length                 int

	Windows     int
	BitsPerByte float64 // NaN where there were no windows

	Trials int
	Recall float64 // share of trials with all digits right; NaN where there were none
	Digits float64 // share of digits right, each after the true ones before it
	Right  [Depths]int
	Asked  [Depths]int

	Seconds float64
}

// Evaluator runs trials through a model.
type Evaluator struct {
	Model   *model.Model
	Backend kernel.Backend
	Policy  kernel.Policy
	Batch   int // tokens run at once; 0: 8192
}

// Measure runs the trials of a method at a length. Step is called with the
// number of tokens each time some are done. It returns the context's error as
// soon as the running batch ends.
func (e *Evaluator) Measure(ctx context.Context, m *method.Method, length int, windows, recall []Trial, step func(tokens int)) (Point, error) {
	p := Point{Method: m.Name, Length: length}
	how, err := m.Setup(e.Model.Config, length)
	if err != nil {
		return p, err
	}
	p.Params = how.Params
	start := time.Now()
	var bits float64
	exact, digits := 0, 0
	run := runner{e, how, &p, step}
	if err := run.all(ctx, windows, func(t *Trial, logits []float32) {
		bits += crossEntropy(logits, t.Targets) / float64(len(t.Targets)) / math.Ln2
		p.Windows++
	}); err != nil {
		return p, err
	}
	if err := run.all(ctx, recall, func(t *Trial, logits []float32) {
		right := correct(logits, t.Targets)
		digits += right
		if right == len(t.Targets) {
			exact++
			p.Right[t.Depth]++
		}
		p.Asked[t.Depth]++
		p.Trials++
	}); err != nil {
		return p, err
	}
	p.BitsPerByte = bits / float64(p.Windows)
	p.Recall, p.Digits = float64(exact)/float64(p.Trials), float64(digits)/float64(p.Trials*numberLength)
	p.Seconds = time.Since(start).Seconds()
	return p, nil
}

type runner struct {
	*Evaluator
	how   method.Setup
	point *Point
	step  func(int)
}

// all runs trials of one length in batches and gives use the logits of each.
func (r *runner) all(ctx context.Context, trials []Trial, use func(*Trial, []float32)) error {
	if len(trials) == 0 {
		return nil
	}
	batch := r.Batch
	if batch == 0 {
		batch = 8192
	}
	size := max(1, batch/len(trials[0].Tokens))
	if r.how.Evict != nil {
		size = 32 // one token of each sequence at a time: many sequences together
	}
	run := r.evict
	if r.how.Evict == nil {
		p, err := model.NewPrefill(r.Model, r.Backend, r.Policy, r.how.Attending)
		if err != nil {
			return err
		}
		defer p.Close()
		r.point.Kernel = p.KernelName()
		run = func(_ context.Context, sequences [][]int32, last int) ([]float32, error) {
			return p.Run(sequences, last)
		}
	}
	for len(trials) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		now := trials[:min(size, len(trials))]
		sequences, total := make([][]int32, len(now)), 0
		for i := range now {
			sequences[i] = now[i].Tokens
			total += len(now[i].Tokens)
		}
		last := len(now[0].Targets)
		logits, err := run(ctx, sequences, last)
		if err != nil {
			return err
		}
		for i := range now {
			use(&now[i], logits[i*last*model.Vocab:][:last*model.Vocab])
		}
		if r.how.Evict == nil {
			r.step(total)
		}
		trials = trials[len(now):]
	}
	return nil
}

// evict runs sequences token by token over a cache that drops keys.
func (r *runner) evict(ctx context.Context, sequences [][]int32, last int) ([]float32, error) {
	d, err := model.NewDecoder(r.Model, r.Backend, r.Policy, r.how.Attending, model.DecoderConfig{Sequences: len(sequences), Evict: r.how.Evict})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	r.point.Kernel = d.KernelName()
	length := len(sequences[0])
	out := make([]float32, len(sequences)*last*model.Vocab)
	next := make([]int32, len(sequences))
	for i := range length {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for s := range sequences {
			next[s] = sequences[s][i]
		}
		row := i - (length - last)
		logits, err := d.Step(next, row >= 0)
		if err != nil {
			return nil, err
		}
		for s := range sequences {
			if row >= 0 {
				copy(out[(s*last+row)*model.Vocab:], logits[s*model.Vocab:][:model.Vocab])
			}
		}
		r.step(len(sequences))
	}
	return out, nil
}

// crossEntropy is −Σ ln p(target) over rows of logits.
func crossEntropy(logits []float32, targets []byte) float64 {
	total := 0.0
	for i, t := range targets {
		row := logits[i*model.Vocab:][:model.Vocab]
		top := row[argmax(row)]
		sum := 0.0
		for _, x := range row {
			sum += math.Exp(float64(x - top))
		}
		total += math.Log(sum) + float64(top-row[t])
	}
	return total
}

// correct counts the targets that are the likeliest next bytes.
func correct(logits []float32, targets []byte) int {
	n := 0
	for i, t := range targets {
		if argmax(logits[i*model.Vocab:][:model.Vocab]) == int(t) {
			n++
		}
	}
	return n
}

func argmax(row []float32) int {
	best := 0
	for i, x := range row {
		if x > row[best] {
			best = i
		}
	}
	return best
}

// Attend runs trials of one length through a model that attends as told, and returns
// bits per byte of the windows and the share of recall's trials with all digits right.
func (e *Evaluator) Attend(ctx context.Context, how model.Attending, windows, recall []Trial, step func(tokens int)) (bits, right float64, err error) {
	run := runner{e, method.Setup{Attending: how}, &Point{}, step}
	if err := run.all(ctx, windows, func(t *Trial, logits []float32) {
		bits += crossEntropy(logits, t.Targets) / float64(len(t.Targets)) / math.Ln2 / float64(len(windows))
	}); err != nil {
		return 0, 0, err
	}
	err = run.all(ctx, recall, func(t *Trial, logits []float32) {
		if correct(logits, t.Targets) == len(t.Targets) {
			right++
		}
	})
	return bits, right / float64(len(recall)), err
}
