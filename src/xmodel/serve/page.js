'use strict'
const PARAMETERS = {  // by their names in the API; what they mean stands in WORDS. An empty field is not sent.
  temperature: { value: 0.8, min: 0, max: 2, step: 0.1 },
  top_p: { value: 0.95, min: 0, max: 1, step: 0.05 },
  top_k: { value: 0, min: 0, step: 1 },
  min_p: { value: 0, min: 0, max: 1, step: 0.01 },
  repetition_penalty: { value: 1, min: 0, step: 0.05 },
  max_tokens: { value: 128, min: 1, step: 1 },
  seed: { value: '', min: 0, step: 1 },
  stop: { value: '', rows: 2 },
  system: { value: '', rows: 2 },
}
const RIVALS = 5  // likeliest alternatives asked for
const SHARES = [0.9, 0.5, 0.2, 0.05, 0.01]  // a token's colour: how many of these its probability stays below
const $ = id => document.getElementById(id)
function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties)
  node.append(...children)
  return node
}
function recall(name) { try { return JSON.parse(localStorage.getItem('xmodel.' + name)) } catch { return null } }
function remember(name, value) { try { localStorage.setItem('xmodel.' + name, JSON.stringify(value)) } catch { /* forbidden */ } }

let language = recall('language') ?? (navigator.language.startsWith('zh') ? 'zh' : 'en')
let mode = recall('mode') === 'chat' ? 'chat' : 'text'
let model = {}  // what /v1/models says: id, max_model_len, parameters
let running = null  // { turn, abort } while an answer arrives
let complaint = null  // the error that is shown: { word, param, ...values }
let lookout = 0  // timer of the next look whether the server is back
const turns = { text: [], chat: [] }

function words(name, values = {}) {
  const text = WORDS[name]?.[language === 'zh' ? 1 : 0] ?? name
  return text.replace(/\{(\w+)\}/g, (_, key) => values[key])
}
const number = (value, digits = 0) => value.toLocaleString(language, { maximumFractionDigits: digits })
const percent = p => p < 1e-4 ? '< 0.01%' : number(100 * p, p < 0.1 ? 2 : 1) + '%'

// ---- the server
class Refused extends Error {
  constructor(status, { message = '', param = null } = {}, wait = null) {
    super(message)
    Object.assign(this, { status, param, wait })
  }
}
async function ask(path, body, signal) {
  const key = sessionStorage.getItem('xmodel.key')
  const headers = { ...(body && { 'Content-Type': 'application/json' }), ...(key && { Authorization: 'Bearer ' + key }) }
  const response = await fetch(path, { method: body ? 'POST' : 'GET', headers, body: body && JSON.stringify(body), signal })
  if (response.ok) return response
  const said = await response.json().catch(() => null)
  throw new Refused(response.status, said?.error, response.headers.get('Retry-After'))
}
async function* events(response) {  // server-sent events: the JSON of each `data:` line, up to [DONE]
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  for (let rest = ''; ;) {
    const { value, done } = await reader.read()
    if (done) throw new TypeError('the stream ended early')
    const lines = (rest + value).split(/\r?\n/)
    rest = lines.pop()
    for (const line of lines) {
      if (!line.startsWith('data:')) continue
      const data = line.slice(5).trim()
      if (data === '[DONE]') return
      yield JSON.parse(data)
    }
  }
}
async function meet() {  // learn the model's name and context
  try {
    model = (await (await ask('/v1/models')).json()).data[0]
    const limit = $('max_tokens')
    limit.defaultValue = Math.min(PARAMETERS.max_tokens.value, model.max_model_len)  // a tiny model's context is shorter
    if (['e401', 'gone'].includes(complaint?.word)) {
      complain(null)
      $('prompt').focus()
    }
    label()
  } catch (error) { explain(error) }
}
async function look_again() {
  const well = await fetch('/health').then(response => response.ok, () => false)
  if (well) meet()
  else lookout = setTimeout(look_again, 3000)
}

// ---- errors in plain words
function complain(word, values = {}) {
  complaint = word && { word, ...values }
  $('key').hidden = word !== 'e401'
  for (const field of document.querySelectorAll('[aria-invalid]')) field.removeAttribute('aria-invalid')
  const id = values.param === 'messages' ? 'prompt' : values.param
  const field = [...fields(), $('prompt')].find(field => field.id === id)
  if (field) {
    if ($('settings').contains(field)) $('settings').open = true
    field.setAttribute('aria-invalid', 'true')
    field.focus()
  } else if (word === 'e401') $('secret').focus()
  show_complaint()
}
function show_complaint() {
  $('error').textContent = complaint ? words(complaint.word, { ...complaint, field: complaint.param && words(complaint.param) }) : ''
}
function explain(error, begun = false) {
  const { status, param, message, wait } = error
  if (!(error instanceof Refused)) {
    complain(begun ? 'broke' : 'gone', { origin: location.origin })
    clearTimeout(lookout)
    lookout = setTimeout(look_again, 3000)
  } else if (status === 400 && param) complain('e400', { param, message })
  else complain([401, 413, 429, 503].includes(status) ? 'e' + status : 'odd', { status, message, n: wait ?? 5 })
}

// ---- tokens and their probabilities
function tokens_of({ logprobs }) {  // chat's and completions' formats, as [{ token, bytes, logprob, rivals }]
  if (logprobs?.content) return logprobs.content.map(token => ({ ...token, rivals: token.top_logprobs }))
  return (logprobs?.tokens ?? []).map((token, i) => ({
    token, logprob: logprobs.token_logprobs[i],
    rivals: Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([token, logprob]) => ({ token, logprob })),
  }))
}
function bytes_of({ token, bytes }) {  // a piece may be a part of a character: completions write it as bytes:\xe4\xbd
  if (bytes) return Uint8Array.from(bytes)
  const parts = /^bytes:((\\x[0-9a-f]{2})+)$/.exec(token)?.[1].split('\\x').slice(1)
  return parts ? Uint8Array.from(parts, part => parseInt(part, 16)) : new TextEncoder().encode(token)
}
const hex = bytes => Array.from(bytes, byte => byte.toString(16).toUpperCase().padStart(2, '0')).join(' ')
const SIGNS = { ' ': '·', '\n': '↵', '\t': '→' }
function name_of(token) {  // a token as one visible word
  const bytes = bytes_of(token)
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    return text.replace(/[\n\t]/g, blank => SIGNS[blank]).replaceAll(' ', '␣') || words('control')
  } catch { return '‹' + hex(bytes) + '›' }
}
const same = (a, b) => hex(bytes_of(a)) === hex(bytes_of(b))
function show_token(turn, token) {
  const bytes = bytes_of(token), text = turn.decoder.decode(bytes, { stream: true }), p = Math.exp(token.logprob)
  const piece = make('span', { className: 'token p' + SHARES.filter(share => p < share).length, role: 'option', token })
  piece.tabIndex = turn.answer.childElementCount ? -1 : 0
  piece.ariaLabel = name_of(token) + ' ' + percent(p)
  if (!text) piece.dataset.hex = hex(bytes)  // a character still incomplete: its last piece shows it
  for (const part of text.split(/([ \n\t])/)) {
    const blank = SIGNS[part] && make('span', { className: 'blank' }, part)  // the sign is drawn: the text stays as it is
    if (blank) blank.dataset.sign = SIGNS[part]
    piece.append(blank ?? part)
  }
  turn.answer.append(piece)
}
function show_rivals(piece) {
  const { token } = piece, candidates = [...token.rivals], box = $('rivals')
  if (!candidates.some(rival => same(rival, token))) candidates.push(token)
  const row = (name, p, className) => {
    const bar = make('i')
    bar.style.width = `${4 * p}rem`
    return make('tr', { className }, make('td', {}, name), make('td', {}, percent(p)), make('td', {}, bar))
  }
  const rest = 1 - candidates.reduce((sum, rival) => sum + Math.exp(rival.logprob), 0)
  const rows = candidates.sort((a, b) => b.logprob - a.logprob)
    .map(rival => row(name_of(rival), Math.exp(rival.logprob), same(rival, token) ? 'taken' : ''))
  box.replaceChildren(make('table', {}, ...rows, row(words('rest'), Math.max(0, rest), 'rest')))
  box.hidden = false
  const at = piece.getClientRects()[0], size = box.getBoundingClientRect()
  const top = at.bottom + 6 + size.height < innerHeight ? at.bottom + 6 : at.top - size.height - 6
  box.style.top = `${Math.max(8, top)}px`
  box.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`
  piece.setAttribute('aria-describedby', 'rivals')
}

// ---- a turn: a prompt and its answer
const shows_tokens = turn => turn.scored && $('probabilities').checked
function show_news(turn) {  // what arrived since the last call
  if (shows_tokens(turn)) turn.tokens.slice(turn.shown).forEach(token => show_token(turn, token))
  else {
    const text = turn.text.slice(turn.shown)  // a chat's answer often begins with the space behind `Assistant:`
    turn.answer.append(turn.mode === 'chat' && !turn.answer.textContent ? text.trimStart() : text)
  }
  turn.shown = shows_tokens(turn) ? turn.tokens.length : turn.text.length
}
function draw(turn) {
  const old = turn.node
  turn.shown = 0
  turn.decoder = new TextDecoder('utf-8', { ignoreBOM: true })
  turn.answer = make('span', { className: 'answer' })
  turn.figures = make('p')
  turn.actions = make('div', { className: 'actions' })
  const who = word => turn.mode === 'chat' ? make('span', { className: 'unseen' }, words(word)) : ''  // for screen readers
  const prompt = make('span', { className: 'prompt' }, turn.prompt)
  turn.node = make('article', {}, make('div', { className: 'said' }, who('you'), prompt, who('it'), turn.answer),
    turn.figures, turn.actions)
  if (shows_tokens(turn)) Object.assign(turn.answer, { role: 'listbox', ariaLabel: words('listed') })
  show_news(turn)
  dress(turn)
  old?.replaceWith(turn.node)
}
function dress(turn) {  // all but the text: it depends on whether an answer is under way
  const busy = running?.turn === turn, last = turns[turn.mode].at(-1) === turn
  const act = (word, onclick) => make('button', { type: 'button', className: 'plain', onclick, disabled: running && word !== 'copy' }, words(word))
  turn.node.className = turn.mode + (busy ? ' streaming' : '')
  turn.figures.textContent = figures(turn)
  turn.actions.replaceChildren(...busy ? [] : [
    act('copy', event => copy(turn, event.target)),
    ...turn.mode === 'text' || last ? [act('again', () => start(turn.mode, turn.prompt, turn))] : [],
    ...turn.mode === 'text' ? [act('extend', () => start('text', turn.prompt + turn.text, turn))] : [],
  ])
}
const perplexity = tokens => Math.exp(tokens.reduce((sum, token) => sum - token.logprob, 0) / tokens.length)
function figures({ usage, tokens, sent, first, last, finish, settings }) {
  const count = usage?.completion_tokens ?? tokens.length
  const seconds = (last - first) / 1000
  const left = usage && model.max_model_len - usage.total_tokens
  return [
    count && words('count', { n: number(count) }),
    count > 1 && seconds > 0 && words('rate', { n: number((count - 1) / seconds, 1) }),
    first && words('first', { n: number((first - sent) / 1000, 2) }),
    finish && tokens.length && words('perplexity', { n: number(perplexity(tokens), 2) }),
    finish && settings.temperature !== 0 && words('drawn', { n: settings.seed }),
    finish && words('ended_' + finish),
    left >= 0 && words('left', { n: number(left), all: number(model.max_model_len) }),
  ].filter(Boolean).join(' · ')
}
async function copy(turn, button) {
  const text = turn.mode === 'text' ? turn.prompt + turn.text : turn.text
  if (navigator.clipboard) await navigator.clipboard.writeText(text)
  else {  // plain http from another machine: browsers offer no clipboard there
    const field = make('textarea', { value: text, className: 'unseen' })
    document.body.append(field)
    field.select()
    document.execCommand('copy')
    field.remove()
  }
  button.textContent = words('copied')
  setTimeout(() => { button.textContent = words('copy') }, 1500)
}

// ---- asking
const fields = () => [...$('parameters').querySelectorAll('input, textarea')]
function settings() {
  const numbers = fields().filter(field => field.type === 'number' && field.value !== '')
  const body = Object.fromEntries(numbers.map(field => [field.id, Number(field.value)]))
  const stop = $('stop').value.split('\n').filter(Boolean)
  if (stop.length) body.stop = stop.map(text => text.replaceAll('\\n', '\n').replaceAll('\\t', '\t'))
  body.seed ??= Math.floor(Math.random() * 1e6)  // our own draw: it is shown, so that an answer can be repeated
  return body
}
function request({ mode, prompt, scored, settings }, before) {
  const body = { model: model.id, stream: true, stream_options: { include_usage: true }, ...settings }
  if (mode === 'text') return ['/v1/completions', { ...body, prompt, ...(scored && { logprobs: RIVALS }) }]
  const messages = $('system').value ? [{ role: 'system', content: $('system').value }] : []
  for (const { prompt, text } of before) {
    if (text) messages.push({ role: 'user', content: prompt }, { role: 'assistant', content: text })
  }
  messages.push({ role: 'user', content: prompt })
  return ['/v1/chat/completions', { ...body, messages, ...(scored && { logprobs: true, top_logprobs: RIVALS }) }]
}
function take(turn, { error, usage, choices = [] }) {
  if (error) throw new Refused(error.code === 'draining' ? 503 : 500, error)
  turn.usage = usage ?? turn.usage
  for (const choice of choices) {
    const text = choice.text ?? choice.delta?.content ?? '', tokens = tokens_of(choice)
    if (text || tokens.length) turn.last = performance.now()
    turn.first ??= turn.last
    turn.text += text
    turn.tokens.push(...tokens)
    turn.finish = choice.finish_reason ?? turn.finish
  }
  turn.frame ??= requestAnimationFrame(() => {  // the browser lays the text out once a frame, however fast it comes
    const log = $('log'), at_end = log.scrollHeight - log.scrollTop - log.clientHeight < 40
    turn.frame = null
    show_news(turn)
    turn.figures.textContent = figures(turn)
    if (at_end) log.scrollTop = log.scrollHeight
  })
}
async function start(mode, prompt, replaced = null) {
  const wrong = fields().find(field => field.validity.badInput)
  if (wrong) return complain('nan', { param: wrong.id })
  const list = turns[mode], abort = new AbortController()
  const turn = { mode, prompt, text: '', tokens: [], scored: $('probabilities').checked, settings: settings(), sent: performance.now() }
  list.splice(replaced ? list.indexOf(replaced) : list.length, replaced ? 1 : 0, turn)
  running = { turn, abort }
  complain(null)
  draw(turn)
  show_turns()
  if (replaced) $('go').focus()
  else $('log').scrollTop = $('log').scrollHeight
  try {
    const response = await ask(...request(turn, list.slice(0, list.indexOf(turn))), abort.signal)
    for await (const event of events(response)) take(turn, event)
  } catch (error) {
    turn.finish = abort.signal.aborted ? 'cancelled' : 'error'
    if (turn.finish === 'error') explain(error, Boolean(turn.text))
    if (!turn.text && turns[mode] === list) {  // nothing came: everything as it was before
      list.splice(list.indexOf(turn), 1, ...replaced ? [replaced] : [])
      if (!replaced) $('prompt').value ||= prompt
    }
  }
  running = null
  show_news(turn)
  $('spoken').textContent = turn.text
  show_turns()
}

// ---- the page
function show_turns() {
  turns[mode].forEach(dress)
  const empty = !turns[mode].length
  $('log').replaceChildren(...empty ? [make('p', { id: 'welcome' }, words('welcome_' + mode))] : turns[mode].map(turn => turn.node))
  $('go').textContent = words(running ? 'halt' : 'go_' + mode)
  $('clear').disabled = empty
}
function label() {  // everything that has words, after a change of language, mode or model
  document.documentElement.lang = language === 'zh' ? 'zh-CN' : 'en'
  for (const node of document.querySelectorAll('[data-t]')) node.textContent = words(node.dataset.t)
  for (const node of document.querySelectorAll('[data-label]')) node.ariaLabel = words(node.dataset.label)
  document.title = $('model').textContent = model.id ?? 'Xmodel'
  const size = model.parameters?.toLocaleString(language, { notation: 'compact', maximumSignificantDigits: 3 })
  $('about').textContent = model.id ? words('about', { size, n: number(model.max_model_len) }) : ''
  $('language').lang = language === 'zh' ? 'en' : 'zh-CN'
  $('prompt').placeholder = $('prompt').ariaLabel = words('write_' + mode)
  $('clear').textContent = words('clear_' + mode)
  $('keys').textContent = words('keys', { key: navigator.platform.startsWith('Mac') ? '⌘' : 'Ctrl' })
  turns[mode].forEach(draw)
  show_complaint()
  show_turns()
}
const saved = recall('settings') ?? {}
for (const [id, { value, ...bounds }] of Object.entries(PARAMETERS)) {
  const field = bounds.rows ? make('textarea', { id, ...bounds }) : make('input', { id, type: 'number', ...bounds })
  field.defaultValue = value
  if (id in saved) field.value = saved[id]  // else it follows its default
  field.setAttribute('aria-describedby', id + '_means')
  const name = make('label', { htmlFor: id }), means = make('small', { id: id + '_means' })
  name.dataset.t = id
  means.dataset.t = id + '_means'
  $('parameters').append(make('div', { className: 'parameter' }, name, field, means))
}
const grades = SHARES.map(share => `≥ ${100 * share}%`).concat(`< ${100 * SHARES.at(-1)}%`)
$('legend').append(...grades.map((text, i) => make('span', { className: 'token p' + i }, text)))
$(mode).checked = true
$('settings').open = matchMedia('(min-width: 54rem)').matches

$('parameters').oninput = event => {
  event.target.removeAttribute('aria-invalid')
  remember('settings', Object.fromEntries(fields().map(field => [field.id, field.value])))
}
$('reset').onclick = () => {
  $('parameters').reset()
  remember('settings', {})
}
$('modes').onchange = event => {
  mode = event.target.id
  remember('mode', mode)
  label()
}
$('language').onclick = () => {
  language = language === 'zh' ? 'en' : 'zh'
  remember('language', language)
  label()
}
$('probabilities').onchange = event => {
  $('legend').hidden = !event.target.checked
  label()
}
$('clear').onclick = () => {
  if (running?.turn.mode === mode) running.abort.abort()
  turns[mode] = []
  complain(null)
  show_turns()
  $('prompt').focus()
}
$('key').onsubmit = event => {
  event.preventDefault()
  sessionStorage.setItem('xmodel.key', $('secret').value)
  $('secret').value = ''
  meet()
}
$('composer').onsubmit = event => {
  event.preventDefault()
  const prompt = $('prompt').value
  if (running) return running.abort.abort()
  if (!prompt && mode === 'chat') return $('prompt').focus()
  if (mode === 'chat') $('prompt').value = ''
  start(mode, prompt)
}
onkeydown = event => {
  if (event.isComposing) return  // Enter and Escape belong to the input method
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && !running) $('composer').requestSubmit()
  if (event.key === 'Escape') {
    running?.abort.abort()
    hide_rivals()
  }
  const side = { ArrowRight: 'nextSibling', ArrowLeft: 'previousSibling' }[event.key]
  const next = side && event.target.token && event.target[side]
  if (next) {
    event.preventDefault()
    event.target.tabIndex = -1
    next.tabIndex = 0
    next.focus()
  }
}
const hide_rivals = () => {
  $('rivals').hidden = true
  document.querySelector('[aria-describedby=rivals]')?.removeAttribute('aria-describedby')
}
const point = event => {
  hide_rivals()
  const piece = event.target.closest('#log .token')
  if (piece) show_rivals(piece)
}
$('log').onpointerover = point
$('log').onpointerleave = $('log').onscroll = hide_rivals
$('log').addEventListener('focusin', point)
$('log').addEventListener('focusout', hide_rivals)
label()
$('prompt').focus() // not by autofocus, which would come after the question for a key
meet()
