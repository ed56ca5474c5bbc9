package kernels

import (
	"time"

	"github.com/longctx/longctx/cuda"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// Device is a backend whose memory is not the host's.
type Device interface {
	kernel.Backend
	CopyIn(dst tensor.Buffer, src []byte) error
	CopyOut(dst []byte, src tensor.Buffer) error
	Wait() error // until all that was asked for is done
	MeasureRoof(bytes int64, d time.Duration) (cuda.Roof, error)
}

// twin is the problem with its tensors in the memory of d. The host's stay: they
// are what results are checked against. free gives the memory of d back.
func (p *problem) twin(d Device) (q *problem, free func(), err error) {
	m := &memory{Device: d}
	defer func() {
		if err != nil {
			m.free()
		}
	}()
	twin := *p
	twin.device, twin.host = d, p
	q = &twin
	for _, v := range []*tensor.View{&q.query, &q.out, &q.grad.lse, &q.grad.out, &q.grad.query, &q.grad.key, &q.grad.value} {
		if err := m.move(v); err != nil {
			return nil, nil, err
		}
	}
	q.keys, q.values = append([]tensor.View{}, p.keys...), append([]tensor.View{}, p.values...)
	for layer := range q.keys {
		for _, v := range []*tensor.View{&q.keys[layer], &q.values[layer]} {
			if err := m.move(v); err != nil {
				return nil, nil, err
			}
		}
	}
	if p.cache != nil {
		if err := q.twinCache(m); err != nil {
			return nil, nil, err
		}
	}
	return q, m.free, nil
}

// twinCache makes a cache that goes through what the host's went through, so that
// its tables are the same, and copies the pages.
func (p *problem) twinCache(m *memory) (err error) {
	if p.cache, err = kvcache.New(m, p.Case.cache(p.layers)); err != nil {
		return err
	}
	if err := p.place(); err != nil {
		return err
	}
	for layer := range p.layers {
		var from, to kernel.Args
		if err := p.host.cache.Bind(layer, &from); err != nil {
			return err
		}
		if err := p.cache.Bind(layer, &to); err != nil {
			return err
		}
		src, dst := tensors(&from), tensors(&to)
		for i, v := range src {
			if v.IsZero() {
				continue
			}
			if err := m.CopyIn(dst[i].Buf, v.Bytes()); err != nil {
				return err
			}
		}
	}
	return nil
}

// tensors are those that Bind sets.
func tensors(a *kernel.Args) []*tensor.View {
	list := []*tensor.View{&a.Key, &a.Value}
	for _, c := range []*kernel.CodedPages{&a.CodedKey, &a.CodedValue} {
		list = append(list, &c.Codes, &c.Scale, &c.Zero)
	}
	return list
}

// memory is a Device whose Alloc remembers what to free.
type memory struct {
	Device
	taken []tensor.Buffer
}

func (m *memory) Alloc(n int64) (tensor.Buffer, error) {
	b, err := m.Device.Alloc(n)
	if err == nil {
		m.taken = append(m.taken, b)
	}
	return b, err
}

// EncodePages codes nothing: the codes are copied.
func (*memory) EncodePages(a *kernel.EncodeArgs) error { return lender{}.EncodePages(a) }

func (m *memory) free() {
	m.Wait()
	for _, b := range m.taken {
		if c, ok := b.(interface{ Close() error }); ok {
			c.Close()
		}
	}
}

// move puts the elements of a tensor of the host into a buffer of the device.
func (m *memory) move(v *tensor.View) error {
	if v.IsZero() {
		return nil
	}
	data := v.Bytes()
	b, err := m.Alloc(int64(len(data)))
	if err != nil {
		return err
	}
	v.Buf = b
	return m.CopyIn(b, data)
}

// results are the tensors that a kernel writes.
func (p *problem) results() []*tensor.View {
	return []*tensor.View{&p.out, &p.grad.query, &p.grad.key, &p.grad.value}
}

// fetch copies the results to the host's problem.
func (p *problem) fetch() error {
	for i, v := range p.results() {
		if v.IsZero() {
			continue
		}
		if err := p.device.CopyOut(p.host.results()[i].Bytes(), v.Buf); err != nil {
			return err
		}
	}
	return nil
}

// wait returns when what was asked for is done.
func (p *problem) wait() error {
	if p.device == nil {
		return nil
	}
	return p.device.Wait()
}
