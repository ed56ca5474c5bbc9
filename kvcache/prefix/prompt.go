package prefix

import "fmt"

// Prompt is what the keys of a sequence were, or will be, computed from. Two
// sequences share pages only where all of it agrees, but Priority.
type Prompt struct {
	// Namespace, Salt and Adapter name who may share and by which weights: a
	// model or tenant; a secret of one user; a LoRA. What differs in one of them
	// shares nothing, whatever the tokens are.
	Namespace, Salt, Adapter string

	Tokens []int32 // ids; only full pages of them are shared
	Media  []Media // in order, not overlapping

	Priority int // with ByPriority: of its pages, the largest of all Inserts
}

// Media is a picture, a sound or an embedding in place of tokens, whose own ids
// in Tokens are placeholders. A page is shared only where the media in it agree.
type Media struct {
	ID             string // names the content: its hash
	Offset, Length int    // the tokens Offset <= j < Offset+Length
}

// ValueError reports an argument outside what is allowed.
type ValueError struct {
	Name      string // "Prompt.Media[1].Offset"
	Got, Want string
}

func (e *ValueError) Error() string {
	return fmt.Sprintf("prefix: %s is %s, want %s", e.Name, e.Got, e.Want)
}

func valueError(name string, got any, want string, args ...any) error {
	return &ValueError{Name: name, Got: fmt.Sprint(got), Want: fmt.Sprintf(want, args...)}
}

// scope is the part of a Prompt that all of its pages have in common.
type scope struct{ namespace, salt, adapter string }

func (p *Prompt) scope() scope { return scope{p.Namespace, p.Salt, p.Adapter} }

func (p *Prompt) check() error {
	end := 0
	for i, m := range p.Media {
		switch {
		case m.Offset < end:
			return valueError(fmt.Sprintf("Prompt.Media[%d].Offset", i), m.Offset, "at least %d, the end of the one before", end)
		case m.Length < 1 || m.Length > maxLength-m.Offset:
			return valueError(fmt.Sprintf("Prompt.Media[%d].Length", i), m.Length, "1 to %d", max(maxLength-m.Offset, 1))
		}
		end = m.Offset + m.Length
	}
	return nil
}

const maxLength = 1<<31 - 1

// paged is a Prompt cut into its full pages.
type paged struct {
	*Prompt
	size  int
	extra []string // of each page, what it has beside tokens; nil: nothing
}

func cut(p *Prompt, size int) (paged, error) {
	if err := p.check(); err != nil {
		return paged{}, err
	}
	g := paged{Prompt: p, size: size}
	if len(p.Media) == 0 {
		return g, nil
	}
	g.extra = make([]string, g.pages())
	g.overlaps(func(page int, m *Media) {
		g.extra[page] = string(m.append([]byte(g.extra[page]), page*size))
	})
	return g, nil
}

// overlaps calls f for each page and each of the media in it, in order.
func (g *paged) overlaps(f func(page int, m *Media)) {
	for i := range g.Media {
		m := &g.Media[i]
		for page := m.Offset / g.size; page < g.pages() && page*g.size < m.Offset+m.Length; page++ {
			f(page, m)
		}
	}
}

func (g *paged) pages() int { return len(g.Tokens) / g.size }

// page is the tokens of a page and what else it has.
func (g *paged) page(i int) (tokens []int32, extra string) {
	if g.extra != nil {
		extra = g.extra[i]
	}
	return g.Tokens[i*g.size : (i+1)*g.size], extra
}
