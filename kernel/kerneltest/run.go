package kerneltest

import (
	"errors"
	"fmt"
	"path"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Case is one thing that a backend must do. Its full name is Op/Name.
type Case struct {
	Op      string // one of ops: "attention", "append", …
	Name    string
	Slow    bool     // takes a tenth of a second or more in plain Go
	Problem *Problem // of attention, backward and columnstats

	expected *expected
	check    func(*trial) // of the other Ops
	policies []kernel.Policy
}

func (c *Case) String() string { return c.Op + "/" + c.Name }

// Applies reports whether the case says anything of a policy. Most of what
// must not matter, matters not only under Exact.
func (c *Case) Applies(policy kernel.Policy) bool {
	return c.policies == nil || slices.Contains(c.policies, policy)
}

// Result is what a Check found.
type Result struct {
	Case   string
	Policy kernel.Policy
	Kernel string // the name the backend gave its kernel, if it chose one

	Unsupported error  // the backend refuses the case and says why
	Err         error  // it failed: an error, a panic, a stray write
	Differences int    // elements that are wrong
	Detail      string // which, and by how much
	Hash        string // SHA-256 of the outputs
}

// OK reports that the backend computed the case rightly.
func (r *Result) OK() bool { return r.Unsupported == nil && r.Err == nil && r.Differences == 0 }

func (r *Result) String() string {
	switch {
	case r.Unsupported != nil && r.Err == nil && r.Differences == 0:
		return fmt.Sprintf("%s %v: %v", r.Case, r.Policy, r.Unsupported)
	case r.Err != nil:
		return fmt.Sprintf("%s %v %s: %v", r.Case, r.Policy, r.Kernel, r.Err)
	case r.Differences > 0:
		return fmt.Sprintf("%s %v %s: %s", r.Case, r.Policy, r.Kernel, r.Detail)
	}
	return fmt.Sprintf("%s %v %s: ok", r.Case, r.Policy, r.Kernel)
}

// verdict is what a test makes of a Result: why to skip, or why it fails.
func (r *Result) verdict(must bool) (skip, fail string) {
	switch {
	case r.OK():
		return "", ""
	case must || r.Err != nil || r.Differences > 0:
		return "", r.String()
	}
	return r.Unsupported.Error(), ""
}

// expected is the oracle's answer, computed once for all backends and
// policies.
type expected struct {
	once    sync.Once
	in      *inputs
	geo     *geometry
	ref     *reference
	naive   [2]func() []*reference // by policy
	exact   func() *answer
	problem *Problem
	err     error
}

func (e *expected) get(p *Problem) *expected {
	e.once.Do(func() {
		e.problem = p.normal()
		e.in = e.problem.makeInputs()
		if e.geo, e.err = newGeometry(e.problem); e.err != nil {
			return
		}
		e.ref = solve64(e.geo, e.in)
		measure := func(held tensor.DType) func() []*reference {
			return sync.OnceValue(func() []*reference {
				return []*reference{solve32(e.geo, e.in, manner{false, held}), solve32(e.geo, e.in, manner{true, held})}
			})
		}
		e.exact = sync.OnceValue(func() *answer { return solveExact(e.geo, e.in) })
		e.naive[kernel.Exact] = measure(tensor.F32)
		e.naive[kernel.Fast] = e.naive[kernel.Exact]
		if d := e.problem.Config.DType; d != tensor.F32 {
			e.naive[kernel.Fast] = measure(d)
		}
	})
	return e
}

// trial is one Check under way.
type trial struct {
	backend kernel.Backend
	policy  kernel.Policy
	result  *Result
}

// fail records an error of the backend, or a refusal.
func (t *trial) fail(err error) {
	var refusal *kernel.UnsupportedError
	switch {
	case errors.As(err, &refusal) && len(refusal.Reasons) > 0:
		t.result.Unsupported = err
	case errors.Is(err, errors.ErrUnsupported):
		t.result.Err = fmt.Errorf("bare errors.ErrUnsupported (%w): say what is not supported in an UnsupportedError", err)
	case t.result.Err == nil:
		t.result.Err = err
	}
}

// differ records elements that are wrong.
func (t *trial) differ(bad int, detail string) {
	t.result.Differences += bad
	if bad > 0 {
		t.result.Detail = join(t.result.Detail, detail)
	}
}

// identical records elements of want whose bits are others in got.
func (t *trial) identical(got, want *answer) {
	have := map[string]*words{}
	for _, f := range got.fields() {
		have[f.name] = f.words
	}
	for _, f := range want.fields() {
		if w := have[f.name]; w != nil {
			t.differ(differ(f.name, w, f.words))
		}
	}
}

// wrong records one thing that is wrong.
func (t *trial) wrong(format string, args ...any) { t.differ(1, fmt.Sprintf(format, args...)) }

// Check computes a case with a backend and judges the result.
func Check(b kernel.Backend, c Case, policy kernel.Policy) Result {
	r := Result{Case: c.String(), Policy: policy}
	t := &trial{backend: b, policy: policy, result: &r}
	if err := guard(func() error { t.run(&c); return nil }); err != nil {
		t.fail(err)
	}
	if want := golden()[r.Case]; want != "" && policy == kernel.Exact && r.Hash != "" && r.Hash != want {
		t.wrong("the outputs hash to %.16s…, recorded is %.16s…", r.Hash, want)
	}
	return r
}

// guard turns a panic, or a fault in a guard page on this goroutine, into a
// *panicError.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = &panicError{r, origin()}
		}
	}()
	return f()
}

type panicError struct {
	value any
	where string
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v at %s", e.value, e.where) }

// origin names the calls that led to a panic, from the inside.
func origin() string {
	var pc [32]uintptr
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc[:])])
	var out []string
	for len(out) < 4 {
		f, more := frames.Next()
		if !strings.HasPrefix(f.Function, "runtime.") {
			out = append(out, fmt.Sprintf("%s:%d", path.Base(f.File), f.Line))
		}
		if !more {
			break
		}
	}
	return strings.Join(out, " < ")
}

func (t *trial) run(c *Case) {
	if c.check != nil {
		c.check(t)
		return
	}
	e := c.expected
	if e == nil {
		e = new(expected)
	}
	if e.get(c.Problem); e.err != nil {
		t.fail(e.err)
		return
	}
	a, name, err := solve(t.backend, e.problem, e.in, c.Problem.Layout, t.policy)
	t.result.Kernel = name
	if err != nil {
		t.fail(err)
		return
	}
	t.result.Hash = a.hash()
	t.differ(judge(e.problem, a, e.ref, e.naive[t.policy](), t.policy))
	if t.policy == kernel.Exact {
		t.identical(a, e.exact())
	}
}

// Must says which cases a backend may not refuse.
type Must func(c Case, policy kernel.Policy) bool

// All is the Must of a backend that supports everything.
func All(Case, kernel.Policy) bool { return true }

// Run checks every case under both policies, as subtests op/case/policy. A
// refused case fails if it is a must, and is skipped with the backend's
// reasons if not. With -short, slow cases are left out.
func Run(t *testing.T, b kernel.Backend, must Must) {
	cases := Cases()
	for len(cases) > 0 {
		op := cases[0].Op
		n := 0
		for n < len(cases) && cases[n].Op == op {
			n++
		}
		t.Run(op, func(t *testing.T) {
			for _, c := range cases[:n] {
				t.Run(c.Name, func(t *testing.T) { runCase(t, b, c, must) })
			}
		})
		cases = cases[n:]
	}
}

func runCase(t *testing.T, b kernel.Backend, c Case, must Must) {
	if c.Slow && testing.Short() {
		t.Skip("slow")
	}
	for _, policy := range []kernel.Policy{kernel.Exact, kernel.Fast} {
		if !c.Applies(policy) {
			continue
		}
		t.Run(policy.String(), func(t *testing.T) {
			r := Check(b, c, policy)
			if skip, fail := r.verdict(must(c, policy)); fail != "" {
				t.Error(fail)
			} else if skip != "" {
				t.Skip(skip)
			}
		})
	}
}
