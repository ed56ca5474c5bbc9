package kernels

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
)

// Torch is PyTorch's scaled_dot_product_attention on the CPU or on a CUDA device,
// in a Python process that answers a line of JSON with a line of JSON. Queries have the
// type of the keys, heads lie one after another, and the query heads of a group
// are folded into one in decode: the layout that suits it best.
type Torch struct {
	Version string
	device  string        // "cpu", "cuda"
	memory  int64         // of tensors
	max     time.Duration // of a run

	process *exec.Cmd
	stdin   io.WriteCloser
	answers chan torchAnswer // closed when there are no more
	stderr  *tail
}

//go:embed torch.py
var torchScript string

type torchCase struct {
	Device   string `json:"device"`
	DType    string `json:"dtype"`
	Heads    int    `json:"heads"`
	KVHeads  int    `json:"kv_heads"`
	HeadDim  int    `json:"head_dim"`
	Length   int    `json:"length"`
	Queries  int    `json:"queries"`
	Causal   bool   `json:"causal"`
	Layers   int    `json:"layers"`
	Threads  int    `json:"threads"`
	Backward bool   `json:"backward,omitempty"`
}

// torchRequest asks to make tensors for a case, or to run it n times.
type torchRequest struct {
	Case    *torchCase `json:"case,omitempty"`
	Backend string     `json:"backend,omitempty"`
	N       int        `json:"n,omitempty"`
}

type torchAnswer struct {
	Version string  `json:"version"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error"`

	broken error // the line was no answer
}

// torchWays are the ways of computing that a device has.
var torchWays = map[string][]string{"cpu": {"flash", "math"}, "cuda": {"flash", "cudnn", "efficient", "math"}}

// torchRate is about how many FLOP a second a thread does in prefill and in
// decode; less, where a run must not take too long.
var torchRate = map[string]map[Kind]float64{
	"flash": {Prefill: 50e9, Decode: 2e9, Backward: 30e9},
	"math":  {Prefill: 5e9, Decode: 0.2e9, Backward: 5e9},
}

// torchDevice is how many of those threads a device makes up for, at the least.
const torchDevice = 100

// rate is that of a way.
func (t *Torch) rate(way string, k Kind) float64 {
	if t.device == "cpu" {
		return torchRate[way][k]
	}
	if way != "math" {
		way = "flash"
	}
	return torchDevice * torchRate[way][k]
}

// StartTorch starts the named Python, whose tensors, on device "cpu" or "cuda",
// may take memory bytes, and a run of a case about max. The error says what
// Python said, for instance that it has no torch.
func StartTorch(ctx context.Context, python, device string, memory int64, max time.Duration) (*Torch, error) {
	t := &Torch{device: device, memory: memory, max: max, answers: make(chan torchAnswer), stderr: &tail{}}
	t.process = exec.Command(python, "-c", torchScript)
	t.process.Stderr = t.stderr
	stdout, err := t.process.StdoutPipe()
	if err == nil {
		t.stdin, err = t.process.StdinPipe()
	}
	if err == nil {
		err = t.process.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("PyTorch: %w (name a Python that has torch with -python)", err)
	}
	go t.listen(stdout)
	answer, err := t.answer(ctx)
	if err != nil {
		t.Close()
		return nil, fmt.Errorf("PyTorch: %w (name a Python that has torch 2.5 or later with -python)", err)
	}
	t.Version = answer.Version
	return t, nil
}

// listen passes answers on until the process has ended, its last words written.
func (t *Torch) listen(stdout io.Reader) {
	defer close(t.answers)
	defer t.process.Wait() // how it ended is of no interest, what it said is
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		var a torchAnswer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			a.broken = fmt.Errorf("got %q, want a line of JSON", lines.Text())
		}
		t.answers <- a
	}
}

var errTorchEnded = errors.New("its process ended")

func (t *Torch) answer(ctx context.Context) (torchAnswer, error) {
	select {
	case a, ok := <-t.answers:
		switch {
		case !ok:
			return a, fmt.Errorf("%w: %s", errTorchEnded, t.stderr)
		case a.broken != nil:
			return a, a.broken
		case a.Error != "":
			return a, errors.New(a.Error)
		}
		return a, nil
	case <-ctx.Done():
		return torchAnswer{}, ctx.Err()
	}
}

func (t *Torch) ask(ctx context.Context, r torchRequest) (torchAnswer, error) {
	line, err := json.Marshal(r)
	if err != nil {
		return torchAnswer{}, err
	}
	if _, err := t.stdin.Write(append(line, '\n')); err != nil {
		for err = nil; err == nil; _, err = t.answer(ctx) { // until it has ended
		}
		return torchAnswer{}, err
	}
	return t.answer(ctx)
}

// settle lets the threads of a peer, which wait busily for a moment, go to
// sleep before the next contender is timed.
const settle = 20 * time.Millisecond

// Contenders are the backends that PyTorch has for the device. A case that they refuse has a
// Note.
func (t *Torch) Contenders(ctx context.Context, c Case, layers int) ([]*Contender, error) {
	name := "pytorch " + t.Version
	none := func(err error) []*Contender {
		var list []*Contender
		for _, way := range torchWays[t.device] {
			list = append(list, without(name, way, err))
		}
		return list
	}
	if c.KV.Torch == "" {
		return none(fmt.Errorf("no counterpart: no attention over %v", c.KV)), nil
	}
	need := int64(layers)*c.kvBytes() + 2*c.queryBytes() + c.gradientBytes()
	if need > t.memory {
		return none(fmt.Errorf("it takes %.1f GiB of memory, above %.1f GiB", gib(need), gib(t.memory))), nil
	}
	_, err := t.ask(ctx, torchRequest{Case: &torchCase{
		t.device, c.KV.Torch, c.Heads, c.KVHeads, c.HeadDim, c.Length, c.Queries(), c.Causal && c.Kind != Decode, layers, c.Threads, c.Kind == Backward,
	}})
	if ctx.Err() != nil || errors.Is(err, errTorchEnded) {
		return nil, errors.Join(ctx.Err(), err)
	} else if err != nil {
		return none(err), nil
	}
	var list []*Contender
	for _, backend := range torchWays[t.device] {
		// math writes the scores down, and their exponentials
		if scores := 3 * 4 * int64(c.Heads) * int64(c.Queries()) * int64(c.Length); backend == "math" && need+scores > t.memory {
			list = append(list, without(name, backend, fmt.Errorf("it takes %.1f GiB of memory, above %.1f GiB", gib(need+scores), gib(t.memory))))
			continue
		}
		if err := fits(c, t.rate(backend, c.Kind), t.max); err != nil {
			list = append(list, without(name, backend, err))
			continue
		}
		contender := without(name, backend, errors.New(""))
		contender.Time = func(ctx context.Context, n int) (float64, error) {
			a, err := t.ask(ctx, torchRequest{Backend: backend, N: n})
			time.Sleep(settle)
			return a.Seconds, err
		}
		list = append(list, contender)
	}
	return list, nil
}

// Close ends the process.
func (t *Torch) Close() error {
	t.stdin.Close()
	t.process.Process.Kill()
	for range t.answers { // until it has ended
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct{ b bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	if t.b.Len() > 1<<16 {
		t.b.Reset()
	}
	return t.b.Write(p)
}

// String is the last line.
func (t *tail) String() string {
	lines := strings.Split(strings.TrimSpace(t.b.String()), "\n")
	return lines[len(lines)-1]
}
