package recurrence

import (
	"errors"
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// copier is a backend with memory of its own, which the host does not see.
type copier interface {
	CopyIn(dst tensor.Buffer, src []byte) error
	CopyOut(dst []byte, src tensor.Buffer) error
}

// elsewhere reports whether a view is on a device.
func elsewhere(v *tensor.View) bool {
	return !v.IsZero() && v.Buf.Size() > 0 && v.Bytes() == nil
}

// checkMemory reports a view that the layer cannot reach. What the host computes
// with needs to be there.
func (l *Layer) checkMemory(name string, v *tensor.View, device bool) error {
	if _, ok := l.backend.(copier); elsewhere(v) && !(ok && device) {
		return fmt.Errorf("recurrence: %s is on %s, want host memory", name, v.Buf.Device())
	}
	return nil
}

// end is the number of bytes from the start of its buffer that a view reaches.
func end(v *tensor.View) int64 {
	last := v.Offset
	for d := range v.Rank {
		if v.Shape[d] == 0 {
			return 0
		}
		last += max(v.Stride[d], 0) * (v.Shape[d] - 1)
	}
	return (last + 1) * v.DType.Size()
}

// runHere runs the technique. Where it computes on the host, that has copies of
// what is on the device.
func (l *Layer) runHere(s *Step) (err error) {
	c, ok := l.backend.(copier)
	if !ok || !l.rec.hosted() {
		return l.rec.run(l, s)
	}
	h := *s
	for _, v := range []*tensor.View{&h.Query, &h.Key, &h.Value, &h.Out, &h.Gate, &h.Beta, &h.Input, &h.Delta, &h.Bonus} {
		if !elsewhere(v) {
			continue
		}
		host := tensor.NewHost(end(v))
		if err := c.CopyOut(host.Bytes(), v.Buf); err != nil {
			return err
		}
		v.Buf = host
	}
	if err := l.rec.run(l, &h); err != nil || !elsewhere(&s.Out) {
		return err
	}
	return c.CopyIn(s.Out.Buf, h.Out.Bytes())
}

// scanHere is Scan with copies on the device of what the host has.
func (l *Layer) scanHere(a *kernel.ScanArgs) (err error) {
	c, ok := l.backend.(copier)
	if !ok {
		return l.backend.Scan(a)
	}
	out := a.Out
	for _, v := range []*tensor.View{&a.Query, &a.Key, &a.Value, &a.Gate, &a.Beta, &a.Bonus, &a.Out} {
		if v.IsZero() || elsewhere(v) {
			continue
		}
		b, allocErr := l.backend.Alloc(end(v))
		if allocErr != nil {
			return allocErr
		}
		defer func() {
			if b, ok := b.(interface{ Close() error }); ok {
				err = errors.Join(err, b.Close())
			}
		}()
		if err := c.CopyIn(b, v.Bytes()[:end(v)]); err != nil {
			return err
		}
		v.Buf = b
	}
	if err := l.backend.Scan(a); err != nil || elsewhere(&out) {
		return err
	}
	return c.CopyOut(out.Bytes()[:end(&out)], a.Out.Buf)
}
